"""What models share whose tokens keep one resolution: position tables, and where to look."""

from collections.abc import Callable
from typing import Any

from vit_jax.checkpoint.tables.family import Config, Edits, Shapes, Size
from vit_jax.families.resize import resize_posembed, square

POSITIONS = "posembed_input/pos_embedding"


def patch_size(config: Config) -> Size:
    height, width = config["patches"]["size"]
    return height, width


def positions(
    prefix: int, *, stride: Callable[[Config], Size] = patch_size, padded: bool = False
) -> dict[str, Any]:
    """The fields `image_size` and `resize` of `Names` for a learned table at `POSITIONS`.

    Args:
      prefix: Tokens that have a position and are no patches.
      stride: Config to the (height, width) in pixels from one token to the next.
      padded: Whether what is left at the border makes a token too.
    """

    def grid(config: Config, size: Size) -> Size:
        (height, width), (rows, columns) = size, stride(config)
        if padded:
            return -(-height // rows), -(-width // columns)
        return height // rows, width // columns

    def image_size(config: Config, shapes: Shapes) -> Size:
        rows, columns = square(shapes[POSITIONS][1] - prefix, "the weights'")
        height, width = stride(config)
        return rows * height, columns * width

    def resize(config: Config, old: Size, new: Size, method: str) -> Edits:
        before, after = grid(config, old), grid(config, new)
        return {POSITIONS: lambda x: resize_posembed(x, before, after, prefix, method)}

    return {"image_size": image_size, "resize": resize}


def encoder_points(
    *,
    embedding: tuple[str, str] = ("embedding", "patch_embed"),
    blocks: str = "blocks",
    norm: str | None = "norm",
) -> Callable[[Config], list[tuple[str, str]]]:
    """The field `points` of `Names` for our encoder; arguments are the reference's names."""

    def points(config: Config) -> list[tuple[str, str]]:
        depth = config["transformer"]["num_layers"]
        found = [(f"Transformer/encoderblock_{i}", f"{blocks}.{i}") for i in range(depth)]
        end = [] if norm is None else [("Transformer/encoder_norm", norm)]
        return [embedding, *found, *end]

    return points

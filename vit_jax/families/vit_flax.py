"""Vision Transformers in files of JAX: the original code's, and big_vision's."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families import released
from vit_jax.families.family import Config, Edit, Layout, Shapes, Size
from vit_jax.families.rules import Table, rule
from vit_jax.families.shapes import POSITIONS, has_class_token, refuse_other_encoders, vit_shapes
from vit_jax.layers.sincos import sincos2d

# --- official -------------------------------------------------------------------------------------


def our_names(config: Config) -> list[str]:
    """Names of all parameters of the model with a head."""
    return list(dict(vit_shapes(config, 1, 1)))


def _official(config: Config) -> Table:
    refuse_other_encoders(config)
    if config["classifier"] == "map":
        raise UserError(
            "the official models have no attention-pooling head; use big_vision or timm"
        )
    return released.writing(our_names(config))


# --- big_vision -----------------------------------------------------------------------------------

# The position embedding lies beside the encoder, as older files had it inside, and the
# attention-pooling head of early ViT-G files lies at the top. Current files hold no position for
# the class token, which is folded into `cls`.
_OLD_POSITIONS = ("pos_embedding", "Transformer/pos_embedding")
_INLINED_HEAD = ("probe", "MlpBlock_0", "MultiHeadDotProductAttention_0", "LayerNorm_0")


def _big_vision(config: Config) -> Table:
    refuse_other_encoders(config)
    if config.get("resnet") is not None:
        raise UserError("big_vision has no hybrids of ResNet and Transformer")
    return [
        row
        for name in our_names(config)
        for row in rule("params/" + ("pos_embedding" if name == POSITIONS else name), name)
    ]


def _read_big_vision(shapes: Shapes) -> Table:
    """Table from a file's names, of any age, to linen names."""
    return [r._replace(ours=(from_big_vision(r.ours[0]),)) for r in released.reading(shapes)]


def _completes_big_vision(shapes: Shapes) -> bool:
    """Whether positions are there, or can be computed for the width of the patches' kernel."""
    kernel = shapes.get("embedding/kernel", ())
    if len(kernel) != 4:
        return False
    if not lacks_positions(shapes):
        return any(len(shapes.get(n, ())) == 3 for n in (*_OLD_POSITIONS, POSITIONS))
    return kernel[3] % 4 == 0 and kernel[3] >= 8


def from_big_vision(name: str) -> str:
    """Our name of a tensor of big_vision's image tower, of any age."""
    if name in _OLD_POSITIONS:
        return POSITIONS
    return f"MAPHead_0/{name}" if name.split("/")[0] in _INLINED_HEAD else name


def lacks_positions(names: Iterable[str]) -> bool:
    """Whether these are of a big_vision model that computes its position embeddings."""
    names = list(names)
    if "embedding/kernel" not in names or any("pos_embedding" in n for n in names):
        return False
    return any(n.startswith("Transformer/") for n in names)


def _complete_big_vision(shapes: Shapes, image_size: Size) -> Edit | None:
    """Adds what the file leaves out: the class token's position, or all positions."""
    if POSITIONS not in shapes:
        rows_px, columns_px, _, width = shapes["embedding/kernel"]
        grid = image_size[0] // rows_px, image_size[1] // columns_px

        def computed() -> np.ndarray:
            table = sincos2d(grid, width)
            return add_class_position(table) if "cls" in shapes else table

        step = f"sincos2d position embeddings computed for a grid of {grid[0]} × {grid[1]}"
        return Edit(step, added={POSITIONS: computed})
    if "cls" not in shapes or _has_class_position(shapes[POSITIONS][1]):
        return None
    step = "position 0 of the class token added (it is folded into `cls`)"
    return Edit(step, changed={POSITIONS: add_class_position})


def _has_class_position(num_tokens: int) -> bool:
    """Whether so many positions are a square grid's and a class token's: big_vision's own test."""
    return math.isqrt(num_tokens) ** 2 + 1 == num_tokens


def add_class_position(posemb: np.ndarray) -> np.ndarray:
    """[1, N, D] -> [1, 1 + N, D]: a zero for a class token that has no position."""
    return np.concatenate([np.zeros_like(posemb[:, :1]), posemb], axis=1)


def _fold_class_position(
    config: Config, tensors: Mapping[str, np.ndarray], image_size: Size | None
) -> Edit | None:
    """Current big_vision adds no position to the class token."""
    if not has_class_token(config):
        return None
    position = tensors[POSITIONS][:, :1]
    if position.any() and image_size is not None and image_size[0] == image_size[1]:
        return Edit(
            "the class token keeps its own position, which big_vision folds into `cls` on loading"
        )
    if position.any():
        step = "the class token's position folded into `cls`"
    else:
        step = "the class token's position, zero, left out"
        position = None  # adding it would turn -0.0 into 0.0

    def fold(cls: np.ndarray) -> np.ndarray:
        return cls if position is None else cls + position

    return Edit(step, changed={POSITIONS: lambda p: p[:, 1:], "cls": fold})


OFFICIAL = Layout(_official, reading=released.reading)
BIG_VISION = Layout(
    _big_vision,
    reading=_read_big_vision,
    computed=lacks_positions,
    complete=_completes_big_vision,
    after_reading=_complete_big_vision,
    before_writing=_fold_class_position,
)

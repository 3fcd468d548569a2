"""Swin Transformer in timm, which moved `downsample` to the start of the next stage."""

import functools
from typing import Any

import numpy as np

from vit_jax.checkpoint.tables.family import Config, Edits, Names, Shapes, Size
from vit_jax.checkpoint.tables.parts import DENSE, ENCODER_BLOCK, LINEAR, NORM
from vit_jax.checkpoint.tables.staged import PATCH_EMBEDDING, block_points
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import Table, rule, under

_BIAS = "MultiHeadDotProductAttention_0/relative_position_bias"
BLOCK = ENCODER_BLOCK + rule("attn.relative_position_bias_table", _BIAS)
MERGING = under("norm", "norm", NORM) + under("reduction", "reduction", LINEAR)


def swin(config: Config) -> Table:
    rows = under("patch_embed", "embedding", PATCH_EMBEDDING)
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        if i > 0:
            rows += under(f"layers.{i}.downsample", f"stage_{i}/merging", MERGING)
        for j in range(depth):
            ours = f"stage_{i}/encoderblock_{j}"
            rows += under(f"layers.{i}.blocks.{j}", ours, BLOCK, heads=heads)
    return rows + under("norm", "encoder_norm", NORM) + under("head.fc", "head", DENSE)


def timm_args(config: Config) -> dict[str, Any]:
    return {
        "patch_size": config["patch_size"],
        "embed_dim": config["embed_dim"],
        "depths": tuple(config["depths"]),
        "num_heads": tuple(config["num_heads"]),
        "window_size": config["window_size"],
    }


def windows(config: Config, size: Size) -> list[Size]:
    """Of each stage, for an image of that size: no larger than the stage's map."""
    largest = config["window_size"]
    maps = [(side // config["patch_size"]) for side in size]
    found = []
    for _ in config["depths"]:
        found.append((min(maps[0], largest), min(maps[1], largest)))
        maps = [-(-side // 2) for side in maps]
    return found


def resize_bias(table: np.ndarray, old: Size, new: Size, method: str) -> np.ndarray:
    """Biases of relative positions [(2 height - 1) (2 width - 1), heads] for another window.

    Args:
      old, new: Windows (height, width).
      method: 'timm' keeps what is said of near cells (`resize_posembed`'s 'geometric'), 'official'
        stretches the table ('bicubic').
    """
    before, after = ((2 * height - 1, 2 * width - 1) for height, width in (old, new))
    method = {"timm": "geometric", "official": "bicubic"}[method]
    return resize_posembed(table[None], before, after, 0, method)[0]


def _image_size(config: Config, shapes: Shapes) -> Size:
    """A square image that has these windows; where all have their full size, larger ones do too."""
    side = config["window_size"] * config["patch_size"] * 2 ** (len(config["depths"]) - 1)
    for i in reversed(range(len(config["depths"]))):
        distances = shapes[f"stage_{i}/encoderblock_0/{_BIAS}"][0]
        window = (square(distances, "the bias table's")[0] + 1) // 2
        if window < config["window_size"]:
            side = window * config["patch_size"] * 2**i
    return side, side


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    edits: Edits = {}
    stages = zip(config["depths"], windows(config, old), windows(config, new), strict=True)
    for i, (depth, before, after) in enumerate(stages):
        edit = functools.partial(resize_bias, old=before, new=after, method=method)
        edits |= {f"stage_{i}/encoderblock_{j}/{_BIAS}": edit for j in range(depth)}
    return edits


FAMILIES = {
    "swin": Names(
        {"timm": swin},
        timm_args,
        # The MLP's output is the one that timm gives as tokens.
        points=block_points("layers.{i}.blocks.{j}.mlp", part="/MlpBlock_0"),
        # Indices and masks that the official files hold.
        ignore=(r".*\.relative_position_index", r".*\.attn_mask"),
        image_size=_image_size,
        resize=_resize,
    )
}

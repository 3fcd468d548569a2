"""PiT (Heo et al. 2021, arXiv:2103.16302, Table 1). Top-1: the official README of naver-ai/pit.

Names: PiT in timm, which also reads the official names (`pools.k` is its `transformers.k+1.pool`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.families.family import (
    Architecture,
    Config,
    Edits,
    Family,
    Layout,
    Shapes,
    Size,
    Timm,
)
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ENCODER_BLOCK,
    ERF,
    NORM,
    always,
    architecture,
    imagenet,
)
from vit_jax.families.resize import resize_posembed
from vit_jax.families.rules import Table, rule, under

# Width of a head, heads and blocks of the three stages, patch and its stride; top-1 without and
# with distillation.
_SIZES = {
    "ti": (32, (2, 4, 8), (2, 6, 4), 16, 8, 73.0, 74.6),
    "xs": (48, (2, 4, 8), (2, 6, 4), 16, 8, 78.1, 79.1),
    "s": (48, (3, 6, 12), (2, 6, 4), 16, 8, 80.9, 81.9),
    "b": (64, (4, 8, 16), (3, 6, 4), 14, 7, 82.0, 84.0),
}


def _pit(size: str, *, distilled: bool = False) -> Architecture:
    head_dim, heads, depths, patch, stride, top1, distilled_top1 = _SIZES[size]
    config = {
        "patch_size": patch,
        "stride": stride,
        "hidden_sizes": tuple(head_dim * n for n in heads),
        "num_heads": heads,
        "depths": depths,
    }
    return architecture(config, imagenet(224), distilled_top1 if distilled else top1, tag="in1k")


_SMALL = {"hidden_sizes": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 1)}


POSITIONS = "posembed_input/pos_embedding"
POOL = under("conv", "conv", CONV) + under("fc", "tokens", DENSE)


def _table(config: Config, heads: dict[str, str]) -> Table:
    """`heads`: class token to the head that reads it."""
    rows = rule("cls_token", tuple(heads), "1 n d -> n 1 1 d" if len(heads) > 1 else "... -> ...")
    rows += rule("pos_embed", POSITIONS, "1 d h w -> 1 h w d")
    rows += under("patch_embed.conv", "embedding", CONV)
    for i, depth in enumerate(config["depths"]):
        stage = f"transformers.{i}"
        if i > 0:
            rows += under(f"{stage}.pool", f"pool_{i}", POOL)
        for j in range(depth):
            ours = f"stage_{i}/encoderblock_{j}"
            block = under(f"{stage}.blocks.{j}", ours, ENCODER_BLOCK, heads=config["num_heads"][i])
            rows += block
    rows += under("norm", "encoder_norm", NORM)
    return rows + [row for head in heads.values() for row in under(head, head, DENSE)]


def pit(config: Config) -> Table:
    return _table(config, {"cls": "head"})


def distilled(config: Config) -> Table:
    return _table(config, {"cls": "head", "dist": "head_dist"})


def timm_args(config: Config) -> dict[str, Any]:
    sizes = zip(config["hidden_sizes"], config["num_heads"], strict=True)
    return {
        "patch_size": config["patch_size"],
        "stride": config["stride"],
        "base_dims": [width // heads for width, heads in sizes],
        "heads": list(config["num_heads"]),
        "depth": list(config["depths"]),
    }


def _image_size(config: Config, shapes: Shapes) -> Size:
    # The smallest image with that many patches: what its stride leaves over is not looked at.
    rows, columns = ((n - 1) * config["stride"] for n in shapes[POSITIONS][1:3])
    return rows + config["patch_size"], columns + config["patch_size"]


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    before, after = _grid(config, old), _grid(config, new)

    def resize(x: np.ndarray) -> np.ndarray:
        x = x.reshape(1, -1, x.shape[-1])
        return resize_posembed(x, before, after, 0, method).reshape(1, *after, -1)

    return {POSITIONS: resize}


def _grid(config: Config, size: Size) -> Size:
    patch, stride = config["patch_size"], config["stride"]
    return (size[0] - patch) // stride + 1, (size[1] - patch) // stride + 1


def _points(config: Config) -> list[tuple[str, str]]:
    blocks = [(i, j) for i, depth in enumerate(config["depths"]) for j in range(depth)]
    points = [(f"stage_{i}/encoderblock_{j}", f"transformers.{i}.blocks.{j}") for i, j in blocks]
    return [("embedding", "patch_embed"), *points, ("encoder_norm", "norm")]


def _layouts(table: Callable[[Config], Table]) -> dict[str, Layout]:
    return {"timm": Layout(table, points=_points, build=Timm(timm_args))}


FAMILIES = {
    "pit": Family(
        title="PiT",
        paper="2103.16302",
        model="pit:PiT",
        computes=ERF,
        architectures={f"pit_{size}_224": _pit(size) for size in _SIZES},
        layouts=_layouts(pit),
        small=always(_SMALL),
        image_size=_image_size,
        resize=_resize,
    ),
    "pit_distilled": Family(
        title="PiT distilled",
        paper="2103.16302",
        model="pit:DistilledPiT",
        computes=ERF,
        architectures={f"pit_{size}_distilled_224": _pit(size, distilled=True) for size in _SIZES},
        layouts=_layouts(distilled),
        small=always(_SMALL),
        image_size=_image_size,
        resize=_resize,
    ),
}

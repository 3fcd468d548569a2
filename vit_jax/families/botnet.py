"""BoTNet (Srinivas et al. 2021, arXiv:2101.11605) in timm's sizes; the paper's are in no library.

Top-1: timm's table of results; `botnet50ts_256` was never trained.

Names: BoTNet in timm (`ByobNet`).
"""

import functools
from collections.abc import Iterator

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
from vit_jax.families.parts import BATCH_NORM, CONV_NORM, DENSE, QKV, always, architecture, imagenet
from vit_jax.families.resize import resize_posembed
from vit_jax.families.rules import Table, rule, under

_CONV, _ATTENTION = "conv", "attention"
_MIXED = (_CONV, _ATTENTION)
_STAGES = {
    "26t": ((_CONV,) * 2, (_CONV,) * 2, _MIXED, (_ATTENTION,) * 2),
    "50ts": ((_CONV,) * 3, (*(_CONV,) * 3, _ATTENTION), _MIXED * 3, (*_MIXED, _CONV)),
}


def _botnet(size: str, activation: str, top1: float | None, tag: str) -> Architecture:
    config = {
        "hidden_sizes": (256, 512, 1024, 2048),
        "stages": _STAGES[size],
        "activation": activation,
    }
    return architecture(config, imagenet(256, 0.95), top1, tag=tag)


_KERNELS = tuple(f"mix/attention/{name}/kernel" for name in QKV)
_ATTENTION = (
    rule("self_attn.qkv.weight", _KERNELS, "(n heads d) c 1 1 -> n c heads d")
    + rule("self_attn.pos_embed.height_rel", "mix/attention/row_offsets")
    + rule("self_attn.pos_embed.width_rel", "mix/attention/column_offsets")
    + under("post_attn", "mix/norm", BATCH_NORM)
)
_UNIT = under("conv1_1x1", "reduce", CONV_NORM) + under("conv3_1x1", "expand", CONV_NORM)
_MIX = {"conv": under("conv2_kxk", "mix", CONV_NORM), "attention": _ATTENTION}
_SHORTCUT = under("shortcut", "shortcut", CONV_NORM)


def _table(config: Config) -> Table:
    rows = [row for i in range(3) for row in under(f"stem.conv{i + 1}", f"stem_{i}", CONV_NORM)]
    heads = config.get("num_heads", 4)
    for i, kinds in enumerate(config["stages"]):
        for j, kind in enumerate(kinds):
            unit = _UNIT + _MIX[kind] + (_SHORTCUT if j == 0 else [])
            rows += under(f"stages.{i}.{j}", f"stage_{i}/unit_{j}", unit, heads=heads)
    return rows + under("head.fc", "head", DENSE)


def resize_offsets(table: np.ndarray, old: int, new: int, method: str) -> np.ndarray:
    """Vectors of offsets [2 old - 1, d] along one axis, for `new` cells: [2 new - 1, d]."""
    # One cell has offset 0 alone, which is not the corner that 'official' would align.
    cells = max(new, 2)
    resized = resize_posembed(table[None], (2 * old - 1, 1), (2 * cells - 1, 1), 0, method)[0]
    return resized[cells - new : cells + new - 1]


def _attentions(config: Config) -> Iterator[tuple[str, int]]:
    """Each attention and the stride in pixels of the map that it sees."""
    for i, kinds in enumerate(config["stages"]):
        for j, kind in enumerate(kinds):
            if kind == "attention":
                halvings = 2 + (i if j > 0 else max(i - 1, 0))  # the first unit of a stage shrinks
                yield f"stage_{i}/unit_{j}/mix/attention", 2**halvings


def _image_size(config: Config, shapes: Shapes) -> Size | None:
    for name, stride in _attentions(config):
        rows, columns = (shapes[f"{name}/{axis}_offsets"][0] for axis in ("row", "column"))
        return (rows + 1) // 2 * stride, (columns + 1) // 2 * stride
    return None


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    edits: Edits = {}
    for name, stride in _attentions(config):
        for axis, before, after in zip(("row", "column"), old, new, strict=True):
            edits[f"{name}/{axis}_offsets"] = functools.partial(
                resize_offsets, old=-(-before // stride), new=-(-after // stride), method=method
            )
    return edits


def _points(config: Config) -> list[tuple[str, str]]:
    units = [(i, j) for i, kinds in enumerate(config["stages"]) for j in range(len(kinds))]
    points = [(f"stage_{i}/unit_{j}", f"stages.{i}.{j}") for i, j in units]
    return [("stem_2", "stem.conv3"), *points]


FAMILIES = {
    "botnet": Family(
        title="BoTNet",
        stem=lambda config: ("stem_0/conv/kernel",),
        paper="2101.11605",
        model="botnet:BoTNet",
        computes="BatchNorm",
        architectures={
            "botnet26t_256": _botnet("26t", "relu", 79.26, "c1_in1k"),
            "botnet50ts_256": _botnet("50ts", "silu", None, ""),
        },
        layouts={"timm": Layout(_table, points=_points, build=Timm())},
        small=always(
            {
                "hidden_sizes": (16, 32, 64, 128),
                "stages": (("conv",), ("conv",), ("conv", "attention"), ("attention",)),
            }
        ),
        image_size=_image_size,
        resize=_resize,
    ),
}

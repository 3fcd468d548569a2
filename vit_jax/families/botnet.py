"""BoTNet (Srinivas et al. 2021, arXiv:2101.11605) in the paper's sizes, and in timm's.

Top-1 of timm's: its table of results; `botnet50ts_256` was never trained. The paper's were never
published: 20.8, 33.5 and 54.7 million parameters, which ours have to 3 %; top-1 as second-hand
sources give it.

Two things about S1 are known at second hand only, from NZ99/bottleneck-transformer-flax. Its units
with attention have no squeeze and excitation (section 4.8.4), but the published numbers count it
there, by a slip of the authors' script: without it S1-59 and S1-110 have 30.4 and 51.6 million.
Ours have it in every unit, as the published numbers do. And that code has SiLU in S1, which is
`activation='silu'` here; the unit that the authors published has ReLU, and so have ours.

Names: BoTNet in timm (`ByobNet`); that of the paper by the names of PyTorch's ResNets, with `mhsa`
and `se` beside them.
"""

import functools
from collections.abc import Iterator
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
    BATCH_NORM,
    CONV_NORM,
    DENSE,
    QKV,
    SHORTCUT,
    always,
    architecture,
    conv_norms,
    imagenet,
)
from vit_jax.families.resize import resize_posembed
from vit_jax.families.rules import Table, rule, under

_CONV_KIND, _ATTENTION_KIND = "conv", "attention"
_MIXED = (_CONV_KIND, _ATTENTION_KIND)
_STAGES = {
    "26t": ((_CONV_KIND,) * 2, (_CONV_KIND,) * 2, _MIXED, (_ATTENTION_KIND,) * 2),
    "50ts": (
        (_CONV_KIND,) * 3,
        (*(_CONV_KIND,) * 3, _ATTENTION_KIND),
        _MIXED * 3,
        (*_MIXED, _CONV_KIND),
    ),
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


_BOTTLENECK = conv_norms({"1": "reduce", "2": "mix", "3": "expand"})
_MHSA = under("bn2", "mix/norm", BATCH_NORM)
for _name in QKV:
    _row = rule("weight", "kernel", "(heads d) c 1 1 -> c heads d")
    _MHSA += under(f"mhsa.w{_name[0]}", f"mix/attention/{_name}", _row)
_MHSA += rule("mhsa.rel_h", "mix/attention/row_offsets")
_MHSA += rule("mhsa.rel_w", "mix/attention/column_offsets")
_ATTENTION_UNIT = conv_norms({"1": "reduce", "3": "expand"}) + _MHSA
_SQUEEZE = under("se.fc1", "squeeze/Dense_0", DENSE) + under("se.fc2", "squeeze/Dense_1", DENSE)


def _torch(config: Config) -> Table:
    rows, heads = conv_norms({"1": "stem"}), config.get("num_heads", 4)
    last = len(config["stages"]) - 1
    for i, kinds in enumerate(config["stages"]):
        shrinks = i > 0 and (i < last or config.get("last_stride", 2) > 1)
        before = config["hidden_sizes"][i - 1] if i > 0 else 64
        changes = shrinks or before != config["hidden_sizes"][i]
        for j, kind in enumerate(kinds):
            unit = _ATTENTION_UNIT if kind == "attention" else _BOTTLENECK
            unit = unit + (SHORTCUT if j == 0 and changes else [])
            unit = unit + (_SQUEEZE if config.get("squeeze", False) else [])
            rows += under(f"layer{i + 1}.{j}", f"stage_{i}/unit_{j}", unit, heads=heads)
    return rows + under("fc", "head", DENSE)


def resize_offsets(table: np.ndarray, old: int, new: int, method: str) -> np.ndarray:
    """Vectors of offsets [2 old - 1, d] along one axis, for `new` cells: [2 new - 1, d]."""
    # One cell has offset 0 alone, which is not the corner that 'official' would align.
    cells = max(new, 2)
    resized = resize_posembed(table[None], (2 * old - 1, 1), (2 * cells - 1, 1), 0, method)[0]
    return resized[cells - new : cells + new - 1]


def _attentions(config: Config) -> Iterator[tuple[str, int]]:
    """Each attention and the stride in pixels of the map that it sees."""
    stride, last = 4, len(config["stages"]) - 1
    for i, kinds in enumerate(config["stages"]):
        for j, kind in enumerate(kinds):
            if kind == "attention":
                yield f"stage_{i}/unit_{j}/mix/attention", stride
            if j == 0 and i > 0:  # the first unit of a stage shrinks what it gives
                stride *= config.get("last_stride", 2) if i == last else 2


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


def _paper(depths: tuple[int, ...], top1: float | None, **fields: Any) -> Architecture:
    *convolutional, last = depths
    config = {
        "hidden_sizes": (256, 512, 1024, 2048),
        "stages": (*((_CONV_KIND,) * n for n in convolutional), (_ATTENTION_KIND,) * last),
        **fields,
    }
    return architecture(config, imagenet(224, 0.875), top1, layout="torch", licence="")


_S1 = {"last_stride": 1, "squeeze": True}

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
    "botnet_paper": Family(
        title="BoTNet, the paper's",
        stem=lambda config: ("stem/conv/kernel",),
        paper="2101.11605",
        model="botnet:PaperBoTNet",
        computes="BatchNorm, scaled scores of positions",
        architectures={
            "botnet50": _paper((3, 4, 6, 3), None),
            "botnet_s1_59": _paper((3, 4, 6, 6), 81.7, **_S1),
            "botnet_s1_110": _paper((3, 4, 23, 6), 82.8, **_S1),
        },
        layouts={"torch": Layout(_torch)},
        small=always(
            {
                "hidden_sizes": (16, 32, 64, 128),
                "stages": (("conv",), ("conv",), ("conv",), ("attention",) * 2),
            }
        ),
        reference="torch",
        figures="the paper's equations, unit by unit",
        image_size=_image_size,
        resize=_resize,
    ),
}

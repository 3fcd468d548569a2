"""CrossViT (Chen et al. 2021, arXiv:2103.14899, Tables 1 and 2: sizes and top-1).

timm's names say the image that goes in, 240 or 408 pixels; the paper's say what the branch of
large patches sees of it, 224 or 384.

Names: CrossViT in timm; the official files write `pos_embed.0` for its `pos_embed_0`.
"""

from typing import Any

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
    HEADS,
    NORM,
    OUT,
    always,
    architecture,
    imagenet,
)
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import Table, rule, under

# Widths of the two branches, their heads, ratio of the MLP, blocks of the branch of large patches
# in each of three encoders; top-1.
_SIZES = {
    "tiny": ((96, 192), 3, 4, 4, 73.4),
    "small": ((192, 384), 6, 4, 4, 81.0),
    "base": ((384, 768), 12, 4, 4, 82.2),
    "9": ((128, 256), 4, 3, 3, 73.9),
    "15": ((192, 384), 6, 3, 5, 81.5),
    "18": ((224, 448), 7, 3, 6, 82.5),
}


def _crossvit(size: str) -> Architecture:
    widths, heads, mlp_ratio, depth, top1 = _SIZES[size]
    config = {
        "patch_sizes": (12, 16),
        "image_scales": (1.0, 224 / 240),
        "hidden_sizes": widths,
        "num_heads": (heads, heads),
        "mlp_ratios": (mlp_ratio, mlp_ratio),
        "depths": ((1, depth),) * 3,
    }
    return architecture(config, imagenet(240, 0.875), top1, tag="in1k")


def _dagger(size: str, top1: float, image_size: int = 240) -> Architecture:
    seen, crop = (224, 0.875) if image_size == 240 else (384, 1.0)
    changed = {"image_scales": (1.0, seen / image_size), "conv_embedding": True}
    config = {**_crossvit(size).config, **changed}
    return architecture(config, imagenet(image_size, crop), top1, tag="in1k")


_PROJECT = under("0", "norm", NORM) + under("2", "dense", DENSE)
_QKV = (("wq", "query"), ("wk", "key"), ("wv", "value"))
_CROSS_ATTENTION = [row for theirs, ours in _QKV for row in under(theirs, ours, HEADS)]
_FUSION = under("norm1", "LayerNorm_0", NORM) + under(
    "attn",
    "MultiHeadDotProductAttention_0",
    _CROSS_ATTENTION + under("proj", "out", OUT),
)
# Between the convolutions stands a ReLU, which counts as a module.
_EMBEDDING = [row for i in range(3) for row in under(f"{2 * i}", f"conv_{i}", CONV)]


def _table(config: Config) -> Table:
    rows: Table = []
    embedding = _EMBEDDING if config.get("conv_embedding", False) else CONV
    branches = range(len(config["patch_sizes"]))
    for b in branches:
        rows += rule(f"cls_token_{b}", f"cls_{b}") + rule(f"pos_embed_{b}", _positions(b))
        rows += under(f"patch_embed.{b}.proj", f"embedding_{b}", embedding)
    for k, depths in enumerate(config["depths"]):
        for b in branches:
            rows += under(f"blocks.{k}", f"encoder_{k}", _branch(b, depths[b], config["num_heads"]))
    for b in branches:
        rows += under(f"norm.{b}", f"encoder_norm_{b}", NORM)
        rows += under(f"head.{b}", f"head_{b}", DENSE)
    return rows


def _branch(b: int, depth: int, num_heads: list[int]) -> Table:
    rows: Table = []
    for j in range(depth):
        block = under(f"blocks.{b}.{j}", f"branch_{b}_block_{j}", ENCODER_BLOCK, heads=num_heads[b])
        rows += block
    rows += under(f"projs.{b}", f"project_{b}", _PROJECT)
    # The heads of the branch that is looked at.
    rows += under(f"fusion.{b}", f"fusion_{b}", _FUSION, heads=num_heads[b - 1])
    return rows + under(f"revert_projs.{b}", f"revert_{b}", _PROJECT)


def _positions(branch: int) -> str:
    return f"posembed_{branch}/pos_embedding"


def _timm_args(config: Config) -> dict[str, Any]:
    return {
        "patch_size": list(config["patch_sizes"]),
        "img_scale": tuple(config["image_scales"]),
        "embed_dim": list(config["hidden_sizes"]),
        "num_heads": list(config["num_heads"]),
        "mlp_ratio": [*config["mlp_ratios"], 1],
        "depth": [[*depths, 0] for depths in config["depths"]],
        "multi_conv": config.get("conv_embedding", False),
    }


def _grids(config: Config, size: Size) -> list[Size]:
    """Rows and columns of patches in each branch."""
    convolutions = config.get("conv_embedding", False)

    def patches(side: int, patch: int) -> int:
        # The first convolution has stride 4 and rounds up; for patches of 12 the next rounds down.
        up = -(-side // (4 if patch == 12 else patch))
        return (up // 3 if patch == 12 else up) if convolutions else side // patch

    return [
        (patches(int(size[0] * scale), patch), patches(int(size[1] * scale), patch))
        for scale, patch in zip(config["image_scales"], config["patch_sizes"], strict=True)
    ]


def _image_size(config: Config, shapes: Shapes) -> Size:
    """The smallest square image from which all branches have so many patches."""
    grids = [square(shapes[_positions(b)][1] - 1, "the weights'") for b in (0, 1)]
    side = grids[0][0] * config["patch_sizes"][0]
    while any(g < wanted for g, wanted in zip(_grids(config, (side, side)), grids, strict=True)):
        side += 1
    return side, side


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    def edit(before: Size, after: Size):
        return lambda x: resize_posembed(x, before, after, 1, method)

    grids = zip(_grids(config, old), _grids(config, new), strict=True)
    return {_positions(b): edit(before, after) for b, (before, after) in enumerate(grids)}


def _points(config: Config) -> list[tuple[str, str]]:
    branches = range(len(config["patch_sizes"]))
    points = [(f"embedding_{b}", f"patch_embed.{b}") for b in branches]
    for k, depths in enumerate(config["depths"]):
        for b in branches:
            ours, theirs = f"encoder_{k}/branch_{b}_block", f"blocks.{k}.blocks.{b}"
            points += [(f"{ours}_{j}", f"{theirs}.{j}") for j in range(depths[b])]
        points += [(f"encoder_{k}/fusion_{b}", f"blocks.{k}.fusion.{b}") for b in branches]
    return points + [(f"encoder_norm_{b}", f"norm.{b}") for b in branches]


FAMILIES = {
    "crossvit": Family(
        title="CrossViT",
        stem=lambda config: ("embedding_0/kernel", "embedding_1/kernel"),
        paper="2103.14899",
        model="crossvit:CrossViT",
        computes=ERF,
        architectures={
            **{f"crossvit_{size}_240": _crossvit(size) for size in _SIZES},
            "crossvit_9_dagger_240": _dagger("9", 77.1),
            "crossvit_15_dagger_240": _dagger("15", 82.3),
            "crossvit_18_dagger_240": _dagger("18", 82.8),
            "crossvit_15_dagger_408": _dagger("15", 83.5, 408),
            "crossvit_18_dagger_408": _dagger("18", 83.9, 408),
        },
        layouts={"timm": Layout(_table, points=_points, build=Timm(_timm_args))},
        small=always({"hidden_sizes": (16, 32), "num_heads": (2, 2), "depths": ((1, 1),)}),
        image_size=_image_size,
        resize=_resize,
    ),
}

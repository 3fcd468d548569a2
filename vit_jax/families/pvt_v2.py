"""Pyramid Vision Transformer v2 (Wang et al. 2022, arXiv:2106.13797, Table 1).

Top-1: the official README of whai362/PVT.

Names: Pyramid Vision Transformer v2 in timm.
"""

from typing import Any

from vit_jax.families.family import Architecture, Config, Family, Layout, Timm
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ERF_EPS5,
    MLP,
    NORM,
    PATCH_EMBEDDING,
    REDUCED_ATTENTION,
    REDUCTION,
    SMALL_STAGES,
    always,
    architecture,
    block_points,
    encoder_block,
    imagenet,
)
from vit_jax.families.rules import Table, under

_WIDTHS = (64, 128, 320, 512)


def _pvt(
    depths: tuple[int, ...],
    top1: float,
    *,
    widths: tuple[int, ...] = _WIDTHS,
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
    linear: bool = False,
) -> Architecture:
    config = {
        "hidden_sizes": widths,
        "depths": depths,
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": mlp_ratios,
        "sr_ratios": (8, 4, 2, 1),
        "linear": linear,
    }
    return architecture(config, imagenet(224), top1, tag="in1k")


def pvt_v2(config: Config) -> Table:
    rows: Table = []
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        theirs, ours = f"stages.{i}", f"stage_{i}"
        embedding = "patch_embed" if i == 0 else f"{theirs}.downsample"
        rows += under(embedding, f"{ours}/embedding", PATCH_EMBEDDING)
        block = _block(reduces=config["linear"] or config["sr_ratios"][i] > 1)
        for j in range(depth):
            rows += under(f"{theirs}.blocks.{j}", f"{ours}/encoderblock_{j}", block, heads=heads)
        rows += under(f"{theirs}.norm", f"{ours}/norm", NORM)
    return rows + under("head", "head", DENSE)


def _block(*, reduces: bool) -> Table:
    attention = REDUCED_ATTENTION + (REDUCTION if reduces else [])
    return encoder_block(attention, MLP + under("dwconv", "depthwise", CONV))


def timm_args(config: Config) -> dict[str, Any]:
    sizes = ("depths", "num_heads", "mlp_ratios", "sr_ratios")
    args = {name: tuple(config[name]) for name in sizes}
    return args | {"embed_dims": tuple(config["hidden_sizes"]), "linear": config["linear"]}


FAMILIES = {
    "pvt_v2": Family(
        title="PVT v2",
        paper="2106.13797",
        model="pvt_v2:PyramidVisionTransformerV2",
        computes=ERF_EPS5,
        architectures={
            "pvt_v2_b0": _pvt((2, 2, 2, 2), 70.5, widths=(32, 64, 160, 256)),
            "pvt_v2_b1": _pvt((2, 2, 2, 2), 78.7),
            "pvt_v2_b2": _pvt((3, 4, 6, 3), 82.0),
            "pvt_v2_b2_li": _pvt((3, 4, 6, 3), 82.1, linear=True),
            "pvt_v2_b3": _pvt((3, 4, 18, 3), 83.1),
            "pvt_v2_b4": _pvt((3, 8, 27, 3), 83.6),
            "pvt_v2_b5": _pvt((3, 6, 40, 3), 83.8, mlp_ratios=(4, 4, 4, 4)),
        },
        layouts={
            "timm": Layout(
                pvt_v2,
                points=block_points("stages.{i}.blocks.{j}"),
                build=Timm(timm_args, img_size=False),
            )
        },
        small=always(SMALL_STAGES),
    ),
}

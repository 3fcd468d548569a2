"""Twins-SVT and Twins-PCPVT (Chu et al. 2021, arXiv:2104.13840), sizes as in the official code.

Top-1: the official README of Meituan-AutoML/Twins.

Names: Twins in timm, whose names are the official ones.
"""

from typing import Any

from vit_jax.families.family import Architecture, Config, Family, Layout, Timm
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ENCODER_BLOCK,
    ERF_EPS5,
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


def _svt(width: int, depths: tuple[int, ...], heads: int, top1: float) -> Architecture:
    """Widths and heads double with every stage."""
    config = {
        "hidden_sizes": tuple(width * 2**i for i in range(4)),
        "depths": depths,
        "num_heads": tuple(heads * 2**i for i in range(4)),
        "mlp_ratios": (4, 4, 4, 4),
        "window_size": 7,
    }
    return _variant(config, top1)


def _pcpvt(depths: tuple[int, ...], top1: float) -> Architecture:
    config = {
        "hidden_sizes": (64, 128, 320, 512),
        "depths": depths,
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": (8, 8, 4, 4),
        "window_size": None,
    }
    return _variant(config, top1)


def _variant(config: dict[str, Any], top1: float) -> Architecture:
    return architecture(config | {"sr_ratios": (8, 4, 2, 1)}, imagenet(224), top1, tag="in1k")


def twins(config: Config) -> Table:
    rows: Table = []
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        reduces = config["sr_ratios"][i] > 1
        everywhere = encoder_block(REDUCED_ATTENTION + (REDUCTION if reduces else []))
        rows += under(f"patch_embeds.{i}", f"stage_{i}/embedding", PATCH_EMBEDDING)
        rows += under(f"pos_block.{i}.proj.0", f"stage_{i}/positions/conv", CONV)
        for j in range(depth):
            nearby = config["window_size"] is not None and j % 2 == 0
            block = ENCODER_BLOCK if nearby else everywhere
            rows += under(f"blocks.{i}.{j}", f"stage_{i}/encoderblock_{j}", block, heads=heads)
    return rows + under("norm", "encoder_norm", NORM) + under("head", "head", DENSE)


def timm_args(config: Config) -> dict[str, Any]:
    sizes = ("depths", "num_heads", "mlp_ratios", "sr_ratios")
    args: dict[str, Any] = {name: tuple(config[name]) for name in sizes}
    # To timm a window of 1 means global attention; `create_model` would drop a None.
    windows = (config["window_size"] or 1,) * len(args["depths"])
    return args | {"embed_dims": tuple(config["hidden_sizes"]), "wss": windows}


FAMILIES = {
    "twins": Family(
        title="Twins",
        stem=lambda config: ("stage_0/embedding/conv/kernel",),
        paper="2104.13840",
        model="twins:Twins",
        computes=ERF_EPS5,
        architectures={
            "twins_svt_small": _svt(64, (2, 2, 10, 4), 2, 81.7),
            "twins_svt_base": _svt(96, (2, 2, 18, 2), 3, 83.2),
            "twins_svt_large": _svt(128, (2, 2, 18, 2), 4, 83.7),
            "twins_pcpvt_small": _pcpvt((3, 4, 6, 3), 81.2),
            "twins_pcpvt_base": _pcpvt((3, 4, 18, 3), 82.7),
            "twins_pcpvt_large": _pcpvt((3, 8, 27, 3), 83.1),
        },
        layouts={
            "timm": Layout(
                twins,
                points=block_points("blocks.{i}.{j}", ends=(("encoder_norm", "norm"),)),
                build=Timm(timm_args, img_size=False),
            )
        },
        small=always(SMALL_STAGES),
    ),
}

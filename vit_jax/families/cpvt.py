"""Flat CPVT (Chu et al. 2021, arXiv:2102.10882): DeiT without a table of positions.

Sizes: the paper's Table 1, which are DeiT's. Top-1: the paper's, as others quote it. There is no
official code of these models: what is computed is DeiT's blocks with the position encoding
generator of Meituan-AutoML/Twins, by the same authors, which has a bias.

Names: CPVT: DeiT's names, and those of Twins for the generators.
"""

from vit_jax.families.deit import sizes
from vit_jax.families.family import Architecture, Config, Family, Layout
from vit_jax.families.parts import (
    CONV,
    DENSE,
    ENCODER_BLOCK,
    ERF,
    NORM,
    SMALL,
    always,
    architecture,
    imagenet,
)
from vit_jax.families.rules import Table, rule, under

_SHORT = {"ti": "tiny", "s": "small", "b": "base"}


def _cpvt(size: str, top1: float | None, *, class_token: bool) -> Architecture:
    config = {**sizes(_SHORT[size], 16), "position_layers": 1, "class_token": class_token}
    return architecture(config, imagenet(224, 0.875), top1, layout="torch", licence="")


def _table(config: Config) -> Table:
    """The names that a DeiT with Twins's `PosCNN` has, the latter in `pos_block`."""
    rows = rule("cls_token", "cls") if config.get("class_token", True) else []
    rows += under("patch_embed.proj", "embedding", CONV)
    depth = config["num_layers"]
    for i in range(depth):
        rows += under(f"blocks.{i}", f"encoderblock_{i}", ENCODER_BLOCK, heads=config["num_heads"])
    for i in range(min(config.get("position_layers", 1), depth)):
        rows += under(f"pos_block.{i}.proj.0", f"positions_{i}/conv", CONV)
    return rows + under("norm", "encoder_norm", NORM) + under("head", "head", DENSE)


FAMILIES = {
    "cpvt": Family(
        title="CPVT",
        paper="2102.10882",
        model="cpvt:CPVT",
        computes=ERF,
        architectures={
            "cpvt_ti_patch16_224": _cpvt("ti", 72.4, class_token=True),
            "cpvt_s_patch16_224": _cpvt("s", 79.9, class_token=True),
            "cpvt_b_patch16_224": _cpvt("b", 81.9, class_token=True),
            "cpvt_ti_gap_patch16_224": _cpvt("ti", 74.9, class_token=False),
            "cpvt_s_gap_patch16_224": _cpvt("s", 81.5, class_token=False),
            "cpvt_b_gap_patch16_224": _cpvt("b", None, class_token=False),
        },
        # No parameter depends on the image size.
        layouts={"torch": Layout(_table)},
        small=always(SMALL),
        reference="torch",
    ),
}

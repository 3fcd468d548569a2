"""DeiT with diverse patches (Gong et al. 2021, arXiv:2104.12753), in the sizes of its code.

Top-1: the official README of ChengyueGongR/PatchVisionTransformer, which has figures of B only.

Names: DiversePatch: DeiT's names, mixtures of heads, and a head for patches.
"""

from vit_jax.families.deit import deit, sizes
from vit_jax.families.family import Architecture, Config, Family, Layout
from vit_jax.families.parts import (
    DENSE,
    ERF,
    LINEAR,
    SMALL,
    always,
    architecture,
    imagenet,
    positions,
)
from vit_jax.families.rules import Table, under


def _deit(size: str, top1: float | None = None, image_size: int = 224) -> Architecture:
    config = {**sizes(size, 16), "head_dropout_rate": 0.2}
    return architecture(config, imagenet(image_size, 0.875), top1, layout="torch", licence="")


_MIXTURES = under("proj_pre", "scores_mix", LINEAR) + under("proj_post", "weights_mix", LINEAR)


def _table(config: Config) -> Table:
    """The names in ChengyueGongR/PatchVisionTransformer, class `VisionTransformer`."""
    rows = deit(config) + under("patch_head", "head_patches", DENSE)
    if config.get("talking_heads", True):
        for i in range(config["num_layers"]):
            attention = f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0"
            rows += under(f"blocks.{i}.attn", attention, _MIXTURES)
    return rows


FAMILIES = {
    "diversepatch": Family(
        title="DeiT, diverse patches",
        paper="2104.12753",
        model="diversepatch:DiversePatchDeiT",
        computes=ERF,
        architectures={
            "diversepatch_deit_tiny_patch16_224": _deit("tiny"),
            "diversepatch_deit_small_patch16_224": _deit("small"),
            "diversepatch_deit_base_patch16_224": _deit("base", 82.9),
            "diversepatch_deit_base_patch16_384": _deit("base", 84.2, 384),
        },
        layouts={"torch": Layout(_table)},
        small=always(SMALL),
        reference="torch",
        resize_method="bicubic",
        **positions(prefix=1),
    ),
}

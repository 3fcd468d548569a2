"""Refiner (Zhou et al. 2021, arXiv:2106.03714), in the sizes of its code, zhoudaquan/Refiner_ViT.

Top-1: the official README, at 224 pixels. L keeps a crop that is larger than what it is cropped
from, as the official code has it: the border is black.

Names: Refiner: a Vision Transformer's names, three convolutions before it, the refinement of maps,
and a head for patches.
"""

from vit_jax.families.family import Architecture, Config, Family, Layout
from vit_jax.families.parts import (
    ATTENTION,
    BATCH_NORM,
    CONV,
    DENSE,
    ERF,
    HEADS,
    KERNEL,
    NORM,
    OUT,
    POSITIONS,
    always,
    architecture,
    encoder_block,
    imagenet,
    positions,
)
from vit_jax.families.rules import Table, rule, under

_HALF = (0.5, 0.5, 0.5)


def _refiner(width: int, depth: int, heads: int, crop: float, top1: float) -> Architecture:
    config = {
        "patch_size": 16,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": 3 * width,
    }
    images = imagenet(224, crop, mean=_HALF, std=_HALF)
    return architecture(config, images, top1, layout="torch", licence="")


_PARTS = (("conv_exp", "expand"), ("depth_sep_conv", "depthwise"), ("conv_pro", "project"))
_REFINEMENT = under("adapt_bn", "refinement/norm", BATCH_NORM) + [
    row
    for i, (theirs, ours) in enumerate(_PARTS, 1)
    for row in under(f"DLA.{theirs}", f"refinement/{ours}/conv", KERNEL)
    + under(f"DLA.bn{i}", f"refinement/{ours}/norm", BATCH_NORM)
]
_VALUES = under("qkv", "value", HEADS) + under("proj", "out", OUT)


def _block(attention: Table) -> Table:
    return encoder_block(attention) + rule("mlp.scale_channel", "residual_1/gamma")


_BLOCK = _block(ATTENTION)
_REUSING_BLOCK = _block(_VALUES + _REFINEMENT)
_REFINED_BLOCK = _block(ATTENTION + _REFINEMENT)


def _table(config: Config) -> Table:
    """The names in zhoudaquan/Refiner_ViT, class `Refiner_ViT`."""
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    for i in range(len(config.get("stem_features", range(3)) or ())):
        rows += under(f"patch_embed.conv{i + 1}", f"stem/conv_{i}/conv", KERNEL)
        rows += under(f"patch_embed.bn{i + 1}", f"stem/conv_{i}/norm", BATCH_NORM)
    rows += under("patch_embed.proj", "embedding", CONV)
    depth, reused = config["num_layers"], config.get("reused_layers")
    reused = range(1, depth, 2) if reused is None else reused
    for i in range(depth):
        block = _REFINED_BLOCK if i in config.get("refined_layers", ()) else _BLOCK
        block = _REUSING_BLOCK if i in reused else block
        rows += under(f"blocks.{i}", f"encoderblock_{i}", block, heads=config["num_heads"])
    return (
        rows
        + under("norm", "encoder_norm", NORM)
        + under("head", "head", DENSE)
        + under("aux_head", "head_tokens", DENSE)
    )


def _stem(config: Config) -> tuple[str, ...]:
    has_convolutions = config.get("stem_features", True) is not None
    return ("stem/conv_0/conv/kernel" if has_convolutions else "embedding/kernel",)


FAMILIES = {
    "refiner": Family(
        title="Refiner",
        paper="2106.03714",
        model="refiner:Refiner",
        stem=_stem,
        computes=ERF,
        architectures={
            "refiner_vit_s": _refiner(384, 16, 12, 0.9, 83.6),
            "refiner_vit_m": _refiner(420, 32, 12, 1.0, 84.6),
            "refiner_vit_l": _refiner(512, 32, 16, 1.13, 84.9),
        },
        layouts={"torch": Layout(_table)},
        small=always(
            {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 2,
                "mlp_dim": 32,
                "stem_features": (8, 8, 8),
            }
        ),
        reference="torch",
        resize_method="official",
        labels_tokens=True,
        **positions(prefix=1),
    ),
}

"""CaiT (Touvron et al. 2021, arXiv:2103.17239, Table 3).

Top-1: the official README of facebookresearch/deit, and for XXS timm's results table.

Names: CaiT: a Vision Transformer's names, heads that talk, and blocks of the class token.
"""

from typing import Any

from vit_jax.families.family import Architecture, Config, Family, Layout, Timm
from vit_jax.families.parts import (
    ATTENTION,
    CONV,
    DENSE,
    ERF,
    GAMMAS,
    HEADS,
    NORM,
    OUT,
    POSITIONS,
    SMALL,
    always,
    architecture,
    encoder_block,
    encoder_points,
    imagenet,
    patch_size,
    positions,
)
from vit_jax.families.rules import Table, rule, under

# Width and heads: 48 wide each.
_WIDTHS = {"xxs": (192, 4), "xs": (288, 6), "s": (384, 8), "m": (768, 16)}


def _cait(size: str, depth: int, image_size: int, top1: float, scale: float = 1e-5) -> Architecture:
    width, heads = _WIDTHS[size]
    config = {
        "patch_size": 16,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": 4 * width,
        "layer_scale_init": scale,
    }
    return architecture(config, imagenet(image_size, 1.0), top1, tag="fb_dist_in1k")


_TALK = under("proj_l", "scores_mix", DENSE) + under("proj_w", "weights_mix", DENSE)
_CLASS_ATTENTION = (
    under("q", "query", HEADS)
    + under("k", "key", HEADS)
    + under("v", "value", HEADS)
    + under("proj", "out", OUT)
)


def _table(config: Config) -> Table:
    heads = config["num_heads"]
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    rows += under("patch_embed.proj", "embedding", CONV)
    for i in range(config["num_layers"]):
        block = encoder_block(ATTENTION + _TALK) + GAMMAS
        rows += under(f"blocks.{i}", f"Transformer/encoderblock_{i}", block, heads=heads)
    for i in range(config.get("num_class_layers", 2)):
        block = encoder_block(_CLASS_ATTENTION) + GAMMAS
        rows += under(f"blocks_token_only.{i}", f"Transformer/classblock_{i}", block, heads=heads)
    return rows + under("norm", "Transformer/encoder_norm", NORM) + under("head", "head", DENSE)


def _timm_args(config: Config) -> dict[str, Any]:
    width = config["hidden_size"]
    return {
        "patch_size": patch_size(config)[0],
        "embed_dim": width,
        "depth": config["num_layers"],
        "depth_token_only": config.get("num_class_layers", 2),
        "num_heads": config["num_heads"],
        "mlp_ratio": config["mlp_dim"] / width,
        "mlp_ratio_token_only": config["mlp_dim"] / width,
    }


FAMILIES = {
    "cait": Family(
        title="CaiT",
        paper="2103.17239",
        model="cait:CaiT",
        computes=ERF,
        architectures={
            "cait_xxs24_224": _cait("xxs", 24, 224, 78.4),
            "cait_xxs24_384": _cait("xxs", 24, 384, 80.9),
            "cait_xxs36_224": _cait("xxs", 36, 224, 79.7),
            "cait_xxs36_384": _cait("xxs", 36, 384, 82.2),
            "cait_xs24_384": _cait("xs", 24, 384, 84.1),
            "cait_s24_224": _cait("s", 24, 224, 83.5),
            "cait_s24_384": _cait("s", 24, 384, 85.1),
            "cait_s36_384": _cait("s", 36, 384, 85.4, scale=1e-6),
            "cait_m36_384": _cait("m", 36, 384, 86.1, scale=1e-6),
            "cait_m48_448": _cait("m", 48, 448, 86.5, scale=1e-6),
        },
        layouts={
            # timm gives all tokens of the final norm, we the class token.
            "timm": Layout(_table, points=encoder_points(norm=None), build=Timm(_timm_args))
        },
        small=always(SMALL),
        **positions(prefix=0),
    ),
}

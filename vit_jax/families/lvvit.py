"""LV-ViT (Jiang et al. 2021, arXiv:2104.10858, Table 1).

Top-1 and rates of stochastic depth: the official README of zihangJiang/TokenLabeling.

Names: LV-ViT, as the official code, released as `tlt`, calls it.
"""

from typing import Any

from vit_jax.families.family import Architecture, Config, Family, Layout, Size, channels
from vit_jax.families.parts import (
    BATCH_NORM,
    CONV,
    DENSE,
    ERF_EPS5,
    KERNEL,
    NORM,
    OUT,
    POSITIONS,
    QKV,
    SMALL,
    always,
    architecture,
    encoder_block,
    encoder_points,
    imagenet,
    merged,
    patch_size,
    positions,
)
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import Table, rule, under


def _lvvit(
    width: int,
    depth: int,
    heads: int,
    divisor: float,
    preprocess: Preprocess,
    top1: float,
    *,
    stem: int = 64,
    drop_path_rate: float = 0.1,
) -> Architecture:
    config = {
        "patch_size": 16,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": 3 * width,
        "residual_divisor": divisor,
        "stem_features": stem,
        "drop_path_rate": drop_path_rate,
    }
    return architecture(config, preprocess, top1, layout="tlt")


_CROPPED, _WHOLE = imagenet(224), imagenet(224, 1.0)
_LARGE = imagenet(448, 1.0)


_BLOCK = encoder_block(under("qkv", "", merged(QKV, bias=False)) + under("proj", "out", OUT))
# Halves of a block, which the official code's `order` may ask for.
_PARTS = {
    "mha": [row for row in _BLOCK if row.theirs.startswith(("norm1.", "attn."))],
    "ffn": [row for row in _BLOCK if row.theirs.startswith(("norm2.", "mlp."))],
}


def _table(config: Config) -> Table:
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    for i in range(3):
        rows += under(f"patch_embed.conv{i + 1}", f"stem/conv_{i}/conv", KERNEL)
        rows += under(f"patch_embed.bn{i + 1}", f"stem/conv_{i}/norm", BATCH_NORM)
    rows += under("patch_embed.proj", "embedding", CONV)
    order = config.get("order") or ("tr",) * config["num_layers"]
    for i, kind in enumerate(order):
        block, parts = f"Transformer/encoderblock_{i}", _PARTS.get(kind, _BLOCK)
        rows += under(f"blocks.{i}", block, parts, heads=config["num_heads"])
    return (
        rows
        + under("norm", "Transformer/encoder_norm", NORM)
        + under("head", "head", DENSE)
        + under("aux_head", "head_tokens", DENSE)
    )


_STEMS = {64: "4_2", 128: "4_2_128"}  # stem_features -> what the official code calls the stem


def _tlt_args(config: Config, num_classes: int, image_size: Size) -> dict[str, Any]:
    width = config["hidden_size"]
    return {
        "img_size": image_size,
        "in_chans": channels(config),
        "patch_size": patch_size(config)[0],
        "num_classes": num_classes,
        "embed_dim": width,
        "depth": config["num_layers"],
        "num_heads": config["num_heads"],
        "mlp_ratio": config["mlp_dim"] / width,
        "skip_lam": config["residual_divisor"],
        "p_emb": _STEMS[config["stem_features"]],
        "return_dense": True,
        **({"head_dim": config["head_dim"]} if config.get("head_dim") else {}),
        **({"order": list(config["order"])} if config.get("order") else {}),
        "drop_path_decay": "fix",  # the linear one asks for numbers that 'meta' has not
    }


FAMILIES = {
    "lvvit": Family(
        title="LV-ViT",
        stem=lambda config: ("stem/conv_0/conv/kernel",),
        paper="2104.10858",
        model="lvvit:LVViT",
        computes=ERF_EPS5,
        architectures={
            # The README gives no rate of stochastic depth for T.
            "lvvit_t": _lvvit(240, 12, 4, 1.0, _CROPPED, 79.1, drop_path_rate=0.0),
            "lvvit_s": _lvvit(384, 16, 6, 2.0, _CROPPED, 83.3),
            "lvvit_m": _lvvit(512, 20, 8, 2.0, _WHOLE, 84.0, drop_path_rate=0.2),
            "lvvit_l": _lvvit(768, 24, 12, 3.0, _LARGE, 86.2, stem=128, drop_path_rate=0.3),
        },
        layouts={"tlt": Layout(_table, points=encoder_points(), build=_tlt_args)},
        small=always({**SMALL, "stem_features": 16}),
        reference="tlt",
        official="tlt",
        labels_tokens=True,
        **positions(prefix=1),
    ),
}

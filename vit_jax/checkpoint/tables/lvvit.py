"""LV-ViT, as the official code, released as `tlt`, calls it."""

from vit_jax.checkpoint.tables.family import Config, Names
from vit_jax.checkpoint.tables.parts import (
    BATCH_NORM,
    CONV,
    DENSE,
    KERNEL,
    NORM,
    OUT,
    QKV,
    encoder_block,
    merged,
)
from vit_jax.checkpoint.tables.plain import POSITIONS, encoder_points, positions
from vit_jax.families.rules import Table, rule, under

_BLOCK = encoder_block(under("qkv", "", merged(QKV, bias=False)) + under("proj", "out", OUT))


def _lvvit(config: Config) -> Table:
    transformer = config["transformer"]
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    for i in range(3):
        rows += under(f"patch_embed.conv{i + 1}", f"stem/conv_{i}/conv", KERNEL)
        rows += under(f"patch_embed.bn{i + 1}", f"stem/conv_{i}/norm", BATCH_NORM)
    rows += under("patch_embed.proj", "embedding", CONV)
    for i in range(transformer["num_layers"]):
        block = f"Transformer/encoderblock_{i}"
        rows += under(f"blocks.{i}", block, _BLOCK, heads=transformer["num_heads"])
    return (
        rows
        + under("norm", "Transformer/encoder_norm", NORM)
        + under("head", "head", DENSE)
        + under("aux_head", "head_tokens", DENSE)
    )


FAMILIES = {"lvvit": Names({"tlt": _lvvit}, points=encoder_points(), **positions(prefix=1))}

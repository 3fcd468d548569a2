"""CaiT: a Vision Transformer's names, heads that talk, and blocks of the class token."""

from typing import Any

from vit_jax.checkpoint.tables.family import Config, Names
from vit_jax.checkpoint.tables.parts import (
    ATTENTION,
    CONV,
    DENSE,
    HEADS,
    NORM,
    OUT,
    encoder_block,
)
from vit_jax.checkpoint.tables.plain import POSITIONS, encoder_points, positions
from vit_jax.families.rules import Table, rule, under

_TALK = under("proj_l", "scores_mix", DENSE) + under("proj_w", "weights_mix", DENSE)
_CLASS_ATTENTION = (
    under("q", "query", HEADS)
    + under("k", "key", HEADS)
    + under("v", "value", HEADS)
    + under("proj", "out", OUT)
)


_LAYER_SCALE = rule("gamma_1", "residual_0/gamma") + rule("gamma_2", "residual_1/gamma")


def _cait(config: Config) -> Table:
    transformer = config["transformer"]
    heads = transformer["num_heads"]
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    rows += under("patch_embed.proj", "embedding", CONV)
    for i in range(transformer["num_layers"]):
        block = encoder_block(ATTENTION + _TALK) + _LAYER_SCALE
        rows += under(f"blocks.{i}", f"Transformer/encoderblock_{i}", block, heads=heads)
    for i in range(transformer.get("num_class_layers", 2)):
        block = encoder_block(_CLASS_ATTENTION) + _LAYER_SCALE
        rows += under(f"blocks_token_only.{i}", f"Transformer/classblock_{i}", block, heads=heads)
    return rows + under("norm", "Transformer/encoder_norm", NORM) + under("head", "head", DENSE)


def _timm_args(config: Config) -> dict[str, Any]:
    width, transformer = config["hidden_size"], config["transformer"]
    return {
        "patch_size": config["patches"]["size"][0],
        "embed_dim": width,
        "depth": transformer["num_layers"],
        "depth_token_only": transformer.get("num_class_layers", 2),
        "num_heads": transformer["num_heads"],
        "mlp_ratio": transformer["mlp_dim"] / width,
        "mlp_ratio_token_only": transformer["mlp_dim"] / width,
    }


FAMILIES = {
    "cait": Names(
        {"timm": _cait},
        _timm_args,
        # Of the final norm timm gives all tokens, we the class token.
        points=encoder_points(norm=None),
        **positions(prefix=0),
    )
}

"""DeiT and DeiT III: the Vision Transformer's names, a second token and head, LayerScale."""

from typing import Any

from vit_jax.checkpoint.tables.family import Config, Names
from vit_jax.checkpoint.tables.parts import CONV, DENSE, ENCODER_BLOCK, NORM
from vit_jax.checkpoint.tables.plain import POSITIONS, encoder_points, positions
from vit_jax.families.rules import Table, rule, under

LAYER_SCALE = rule("ls1.gamma", "residual_0/gamma") + rule("ls2.gamma", "residual_1/gamma")


def _body(config: Config, block: Table) -> Table:
    transformer = config["transformer"]
    rows = rule("cls_token", "cls") + rule("pos_embed", POSITIONS)
    rows += under("patch_embed.proj", "embedding", CONV)
    for i in range(transformer["num_layers"]):
        ours = f"Transformer/encoderblock_{i}"
        rows += under(f"blocks.{i}", ours, block, heads=transformer["num_heads"])
    return rows + under("norm", "Transformer/encoder_norm", NORM) + under("head", "head", DENSE)


def deit(config: Config) -> Table:
    return _body(config, ENCODER_BLOCK)


def distilled(config: Config) -> Table:
    return deit(config) + rule("dist_token", "dist") + under("head_dist", "head_dist", DENSE)


def deit3(config: Config) -> Table:
    return _body(config, ENCODER_BLOCK + LAYER_SCALE)


def timm_args(config: Config) -> dict[str, Any]:
    width, transformer = config["hidden_size"], config["transformer"]
    return {
        "patch_size": config["patches"]["size"][0],
        "embed_dim": width,
        "depth": transformer["num_layers"],
        "num_heads": transformer["num_heads"],
        "mlp_ratio": transformer["mlp_dim"] / width,
    }


def _names(layout: Any, prefix: int) -> Names:
    return Names({"timm": layout}, timm_args, points=encoder_points(), **positions(prefix))


FAMILIES = {
    "deit": _names(deit, prefix=1),
    "deit_distilled": _names(distilled, prefix=2),
    "deit3": _names(deit3, prefix=0),
}

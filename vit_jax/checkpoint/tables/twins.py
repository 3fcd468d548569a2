"""Twins in timm, whose names are the official ones."""

from typing import Any

from vit_jax.checkpoint.tables.family import Config, Names
from vit_jax.checkpoint.tables.parts import CONV, DENSE, ENCODER_BLOCK, NORM, encoder_block
from vit_jax.checkpoint.tables.staged import (
    PATCH_EMBEDDING,
    REDUCED_ATTENTION,
    REDUCTION,
    block_points,
)
from vit_jax.families.rules import Table, under


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
    sizes = ("embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios")
    args: dict[str, Any] = {name: tuple(config[name]) for name in sizes}
    # To timm a window of 1 means global attention; `create_model` would drop a None.
    return args | {"wss": (config["window_size"] or 1,) * len(args["depths"])}


FAMILIES = {
    "twins": Names(
        {"timm": twins},
        timm_args,
        timm_img_size=False,
        points=block_points("blocks.{i}.{j}", ends=(("encoder_norm", "norm"),)),
    )
}

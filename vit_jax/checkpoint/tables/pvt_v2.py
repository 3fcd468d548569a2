"""Pyramid Vision Transformer v2 in timm."""

from typing import Any

from vit_jax.checkpoint.tables.family import Config, Names
from vit_jax.checkpoint.tables.parts import CONV, DENSE, MLP, NORM, encoder_block
from vit_jax.checkpoint.tables.staged import (
    PATCH_EMBEDDING,
    REDUCED_ATTENTION,
    REDUCTION,
    block_points,
)
from vit_jax.families.rules import Table, under


def pvt_v2(config: Config) -> Table:
    rows: Table = []
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        theirs, ours = f"stages.{i}", f"stage_{i}"
        embedding = "patch_embed" if i == 0 else f"{theirs}.downsample"
        rows += under(embedding, f"{ours}/embedding", PATCH_EMBEDDING)
        block = _block(reduces=config["linear"] or config["sr_ratios"][i] > 1)
        for j in range(depth):
            rows += under(f"{theirs}.blocks.{j}", f"{ours}/encoderblock_{j}", block, heads=heads)
        rows += under(f"{theirs}.norm", f"{ours}/norm", NORM)
    return rows + under("head", "head", DENSE)


def _block(*, reduces: bool) -> Table:
    attention = REDUCED_ATTENTION + (REDUCTION if reduces else [])
    return encoder_block(attention, MLP + under("dwconv", "depthwise", CONV))


def timm_args(config: Config) -> dict[str, Any]:
    sizes = ("embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios")
    return {name: tuple(config[name]) for name in sizes} | {"linear": config["linear"]}


FAMILIES = {
    "pvt_v2": Names(
        {"timm": pvt_v2},
        timm_args,
        timm_img_size=False,
        points=block_points("stages.{i}.blocks.{j}"),
    )
}

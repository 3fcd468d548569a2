"""What files call the tensors of SigLIP 2 NaFlex's image tower, and how libraries build it.

Checked against timm 1.0.31 and transformers 5.24. Patches come as numbers in a row, by (row,
column, channel), in every library: what reads them is a linear layer.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vit_jax.families import hf, released, siglip_layouts, vit_torch
from vit_jax.families.family import (
    RGB,
    Config,
    HuggingFace,
    Layout,
    Pairs,
    Shapes,
    Size,
    Timm,
    channels,
)
from vit_jax.families.parts import (
    BIAS,
    DENSE,
    ENCODER_BLOCK,
    NORM,
    POSITIONS,
    encoder_points,
    mlp_ratio,
)
from vit_jax.families.rules import Rule, Table, rule, under


def _patches(theirs: str, config: Config) -> Table:
    """A linear layer on their side, a convolution's kernel on ours."""
    rows = rule("weight", "kernel", "o (h w c) -> h w c o") + BIAS
    side = config["patch_size"]
    return under(theirs, "embedding", rows, h=side, w=side)


# --- timm -----------------------------------------------------------------------------------------


def _timm(config: Config) -> Table:
    rows = rule("embeds.pos_embed", POSITIONS, "1 h w d -> h w d")
    rows += _patches("embeds.proj", config)
    for i in range(config["num_layers"]):
        rows += under(f"blocks.{i}", f"Transformer/encoderblock_{i}", ENCODER_BLOCK)
    rows += under("norm", "Transformer/encoder_norm", NORM)
    rows += under("attn_pool", "MAPHead_0", vit_torch.MAP_HEAD)
    return under("", "", rows + under("head", "head", DENSE), heads=config["num_heads"])


def _timm_args(config: Config) -> dict[str, Any]:
    return {
        "patch_size": config["patch_size"],
        "embed_dim": config["hidden_size"],
        "depth": config["num_layers"],
        "num_heads": config["num_heads"],
        "mlp_ratio": mlp_ratio(config["mlp_dim"], config["hidden_size"]),
        "pos_embed_grid_size": [config["position_grid"]] * 2,
    }


TIMM = Layout(
    _timm,
    # It adds positions to its embedding in place, so that the first block is the first to compare.
    points=lambda config: encoder_points()(config)[1:],
    build=Timm(_timm_args, img_size=False),
)

# --- Hugging Face ---------------------------------------------------------------------------------


def _hf(config: Config) -> Table:
    """transformers' `Siglip2VisionModel`."""
    rows = _patches("embeddings.patch_embedding", config)
    side = config["position_grid"]
    positions = rule("embeddings.position_embedding.weight", POSITIONS, "(h w) d -> h w d")
    rows += under("", "", positions, h=side, w=side)
    rows += hf.tower_blocks(config["num_layers"], "Transformer")
    rows += under("post_layernorm", "Transformer/encoder_norm", NORM)
    rows += under("head", "MAPHead_0", siglip_layouts.MAP_HEAD)
    return under("", "", rows, heads=config["num_heads"])


def _hf_points(config: Config) -> Pairs:
    points = encoder_points(
        embedding=("embedding", "embeddings.patch_embedding"),
        blocks="encoder.layers",
        norm="post_layernorm",
    )
    return points(config)


def _write(config: Config, image_size: Size) -> dict[str, Any]:
    """The entries of a `Siglip2VisionConfig`, which tell no image size."""
    del image_size
    return {
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": config["mlp_dim"],
        "num_patches": config["position_grid"] ** 2,
        "patch_size": config["patch_size"],
        "num_channels": channels(config),
        "vision_use_head": True,
        **siglip_layouts.NUMERICS,
    }


def _read(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "patch_size": hf.square(fields.get("patch_size", 16)),
        "position_grid": math.isqrt(fields.get("num_patches", 256)),
        "hidden_size": fields.get("hidden_size", 768),
        **siglip_layouts.read_sizes(fields),
    }


HUGGING_FACE = Layout(
    siglip_layouts.refuse_head,
    headless=_hf,
    respell=siglip_layouts.respell_vision,
    ignore=siglip_layouts.OLD_BUFFERS,
    points=_hf_points,
    build=HuggingFace("siglip2_vision_model", (None, "Siglip2VisionModel"), _write, _read),
)

# --- big_vision -----------------------------------------------------------------------------------


def big_vision(names: Callable[[Config], Iterable[str]]) -> Layout:
    """big_vision's layout of an image tower; `names`: config to ours."""
    theirs = {POSITIONS: "pos_embedding"}
    back = {"pos_embedding": POSITIONS}

    def table(config: Config) -> Table:
        return [r for n in names(config) for r in rule(f"params/{theirs.get(n, n)}", n)]

    def reading(shapes: Shapes) -> Table:
        rows = released.reading(shapes)
        return [r._replace(ours=(back.get(r.ours[0], r.ours[0]),)) for r in rows]

    return flat(Layout(table, reading=reading))


def flat(layout: Layout) -> Layout:
    """The layout, the kernel that reads the patches being a linear layer's, [p · p · C, D]."""
    table, reading = layout.table, layout.reading
    assert reading is not None

    def flattened(rows: Table, patch: Callable[[Rule], int]) -> Table:
        pattern = "(h w c) d -> h w c d"
        return [
            r._replace(pattern=pattern, axes=(*r.axes, ("h", patch(r)), ("w", patch(r))))
            if r.ours[0].endswith("embedding/kernel")
            else r
            for r in rows
        ]

    def flat_table(config: Config) -> Table:
        return flattened(table(config), lambda row: config.get("image", config)["patch_size"])

    def flat_reading(shapes: Shapes) -> Table:
        """The shape tells the side of a patch of RGB images."""
        return flattened(reading(shapes), lambda row: math.isqrt(shapes[row.theirs][0] // RGB))

    return dataclasses.replace(layout, table=flat_table, reading=flat_reading)

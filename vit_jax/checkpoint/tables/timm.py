"""timm's names (checked against 1.0.31) for the Google families.

`table(config, head)` builds the table of one model; classifier 'map' is big_vision's attention
pooling, which timm has and our models have not. timm has no counterpart of `pre_logits` nor
of a Vision Transformer without encoder; both raise UserError.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.checkpoint.tables.parts import (
    CONV,
    DENSE,
    ENCODER_BLOCK,
    HEADS,
    KERNEL,
    MLP,
    NORM,
    OUT,
    merged,
)
from vit_jax.errors import UserError
from vit_jax.families.registry import family_of
from vit_jax.families.rules import Table, rule, under

IGNORE = ()  # names in its state dicts that carry no information
HEAD = "head."
MIXER_BLOCK = (
    under("norm1", "LayerNorm_0", NORM)
    + under("mlp_tokens", "token_mixing", MLP)
    + under("norm2", "LayerNorm_1", NORM)
    + under("mlp_channels", "channel_mixing", MLP)
)
KV = ("key", "value")
MAP_HEAD = (
    rule("latent", "probe")
    + under("q", "MultiHeadDotProductAttention_0/query", HEADS)
    + under("kv", "MultiHeadDotProductAttention_0", merged(KV))
    + under("proj", "MultiHeadDotProductAttention_0/out", OUT)
    + under("norm", "LayerNorm_0", NORM)
    + under("mlp", "MlpBlock_0", MLP)
)
RESIDUAL_UNIT = [
    row
    for k in (1, 2, 3)
    for row in under(f"conv{k}", f"conv{k}", KERNEL) + under(f"norm{k}", f"gn{k}", NORM)
]
PROJECTION = under("downsample.conv", "conv_proj", KERNEL) + under(
    "downsample.norm", "gn_proj", NORM
)


def table(config: Mapping[str, Any], *, head: bool = True) -> Table:
    """The table of the model with these constructor fields; `head`: it has a classifier."""
    rows = _mixer(config) if family_of(config) == "mixer" else _vit(config)
    return rows + (under("head", "head", DENSE) if head else [])


def _vit(config: Mapping[str, Any]) -> Table:
    if config.get("representation_size") is not None:
        raise UserError(
            "timm has no `pre_logits` layer; drop it (`drop_pre_logits`, which drops the head that "
            "reads it too) or keep the official format"
        )
    if config.get("transformer") is None:
        raise UserError("timm has no Vision Transformer without an encoder")
    rows = rule("pos_embed", "Transformer/posembed_input/pos_embedding")
    if config["classifier"] in ("token", "token_unpooled"):
        rows += rule("cls_token", "cls")
    if config.get("resnet") is not None:
        rows += under("patch_embed.backbone", "", _resnet(config["resnet"]["num_layers"]))
    rows += under("patch_embed.proj", "embedding", CONV)
    for i in range(config["transformer"]["num_layers"]):
        rows += under(f"blocks.{i}", f"Transformer/encoderblock_{i}", ENCODER_BLOCK)
    if config["classifier"] == "map":
        rows += under("attn_pool", "MAPHead_0", MAP_HEAD)
    return rows + under("norm", "Transformer/encoder_norm", NORM)


def _resnet(num_layers: tuple[int, ...]) -> Table:
    # Without stages timm's backbone *is* the stem.
    stem = "stem." if num_layers else ""
    rows = under(f"{stem}conv", "conv_root", KERNEL) + under(f"{stem}norm", "gn_root", NORM)
    for i, units in enumerate(num_layers):
        for j in range(units):
            unit = RESIDUAL_UNIT + (PROJECTION if j == 0 else [])
            rows += under(f"stages.{i}.blocks.{j}", f"block{i + 1}/unit{j + 1}", unit)
    return rows


def _mixer(config: Mapping[str, Any]) -> Table:
    rows = under("stem.proj", "stem", CONV)
    for i in range(config["num_blocks"]):
        rows += under(f"blocks.{i}", f"MixerBlock_{i}", MIXER_BLOCK)
    return rows + under("norm", "pre_head_layer_norm", NORM)

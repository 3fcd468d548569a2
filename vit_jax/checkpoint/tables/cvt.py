"""Convolutional vision Transformer: the official code's names, and Hugging Face's."""

from vit_jax.checkpoint.tables.family import Config, Names
from vit_jax.checkpoint.tables.parts import (
    BATCH_NORM,
    CONV,
    CONV_NORM,
    DENSE,
    HEADS,
    KERNEL,
    NORM,
    OUT,
    encoder_block,
)
from vit_jax.checkpoint.tables.staged import PATCH_EMBEDDING, block_points
from vit_jax.families.rules import Table, rule, under

_PROJECTED = ("query", "key", "value")


def torch(config: Config) -> Table:
    """Of microsoft/CvT, lib/models/cls_cvt.py."""
    attention = under("proj", "out", OUT)
    for name in _PROJECTED:
        attention += under(f"conv_proj_{name[0]}", f"{name}_conv", CONV_NORM)
        attention += under(f"proj_{name[0]}", name, HEADS)
    block = encoder_block(attention)
    rows = rule(f"stage{len(config['depths']) - 1}.cls_token", _cls(config))
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        rows += under(f"stage{i}.patch_embed", f"stage_{i}/embedding", PATCH_EMBEDDING)
        for j in range(depth):
            ours = f"stage_{i}/encoderblock_{j}"
            rows += under(f"stage{i}.blocks.{j}", ours, block, heads=heads)
    return rows + under("norm", "encoder_norm", NORM) + under("head", "head", DENSE)


def hf(config: Config) -> Table:
    """Of `CvtForImageClassification`."""
    embedding = under("projection", "conv", CONV) + under("normalization", "norm", NORM)
    embedding = under("embedding.convolution_embeddings", "embedding", embedding)
    block = _hf_block()
    rows = rule(f"{len(config['depths']) - 1}.cls_token", _cls(config))
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        rows += under(f"{i}", f"stage_{i}", embedding)
        for j in range(depth):
            rows += under(f"{i}.layers.{j}", f"stage_{i}/encoderblock_{j}", block, heads=heads)
    rows = under("cvt.encoder.stages", "", rows)
    return rows + under("layernorm", "encoder_norm", NORM) + under("classifier", "head", DENSE)


def _hf_block() -> Table:
    conv_norm = under("convolution", "conv", KERNEL) + under("normalization", "norm", BATCH_NORM)
    attention = under("output.dense", "out", OUT)
    for name in _PROJECTED:
        theirs = f"attention.convolution_projection_{name}.convolution_projection"
        attention += under(theirs, f"{name}_conv", conv_norm)
        attention += under(f"attention.projection_{name}", name, HEADS)
    return (
        under("layernorm_before", "LayerNorm_0", NORM)
        + under("attention", "MultiHeadDotProductAttention_0", attention)
        + under("layernorm_after", "LayerNorm_1", NORM)
        + under("intermediate.dense", "MlpBlock_0/Dense_0", DENSE)
        + under("output.dense", "MlpBlock_0/Dense_1", DENSE)
    )


def _cls(config: Config) -> str:
    return f"stage_{len(config['depths']) - 1}/cls"


FAMILIES = {
    "cvt": Names(
        {"hf": hf, "torch": torch}, points=block_points("cvt.encoder.stages.{i}.layers.{j}")
    )
}

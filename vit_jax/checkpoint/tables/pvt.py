"""Pyramid Vision Transformer: the official code's names, and Hugging Face's."""

import functools

from vit_jax.checkpoint.tables.family import Config, Edits, Names, Shapes, Size
from vit_jax.checkpoint.tables.parts import CONV, DENSE, HEADS, NORM, OUT, encoder_block
from vit_jax.checkpoint.tables.staged import (
    PATCH_EMBEDDING,
    REDUCED_ATTENTION,
    REDUCTION,
    block_points,
)
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import Table, rule, under

_POSITIONS = "posembed_input/pos_embedding"
_ATTENTION = "MultiHeadDotProductAttention_0"


def torch(config: Config) -> Table:
    """Of whai362/PVT, classification/pvt.py."""
    rows = rule("cls_token", f"stage_{len(config['depths']) - 1}/cls")
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        ours = f"stage_{i}"
        rows += under(f"patch_embed{i + 1}", f"{ours}/embedding", PATCH_EMBEDDING)
        rows += rule(f"pos_embed{i + 1}", f"{ours}/{_POSITIONS}")
        reduces = config["sr_ratios"][i] > 1
        block = encoder_block(REDUCED_ATTENTION + (REDUCTION if reduces else []))
        for j in range(depth):
            rows += under(f"block{i + 1}.{j}", f"{ours}/encoderblock_{j}", block, heads=heads)
    return rows + under("norm", "encoder_norm", NORM) + under("head", "head", DENSE)


def hf(config: Config) -> Table:
    """Of `PvtForImageClassification`."""
    last = len(config["depths"]) - 1
    embedding = under("projection", "conv", CONV) + under("layer_norm", "norm", NORM)
    rows = rule(f"patch_embeddings.{last}.cls_token", f"stage_{last}/cls")
    for i, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        theirs, ours = f"patch_embeddings.{i}", f"stage_{i}"
        rows += under(theirs, f"{ours}/embedding", embedding)
        rows += rule(f"{theirs}.position_embeddings", f"{ours}/{_POSITIONS}")
        block = _hf_block(reduces=config["sr_ratios"][i] > 1)
        for j in range(depth):
            rows += under(f"block.{i}.{j}", f"{ours}/encoderblock_{j}", block, heads=heads)
    rows = under("pvt.encoder", "", rows + under("layer_norm", "encoder_norm", NORM))
    return rows + under("classifier", "head", DENSE)


def _hf_block(*, reduces: bool) -> Table:
    attention = [r for x in ("query", "key", "value") for r in under(f"self.{x}", x, HEADS)]
    if reduces:
        attention += under("self.sequence_reduction", "reduction/conv", CONV)
        attention += under("self.layer_norm", "reduction/norm", NORM)
    attention += under("output.dense", "out", OUT)
    return (
        under("layer_norm_1", "LayerNorm_0", NORM)
        + under("attention", _ATTENTION, attention)
        + under("layer_norm_2", "LayerNorm_1", NORM)
        + under("mlp.dense1", "MlpBlock_0/Dense_0", DENSE)
        + under("mlp.dense2", "MlpBlock_0/Dense_1", DENSE)
    )


def _image_size(config: Config, shapes: Shapes) -> Size:
    del config
    rows, columns = square(shapes[f"stage_0/{_POSITIONS}"][1], "the weights'")
    return rows * 4, columns * 4


def _resize(config: Config, old: Size, new: Size, method: str) -> Edits:
    """'official' is what the official code does at run time: PyTorch's bilinear, half-pixel."""
    method = "bilinear" if method == "official" else method
    edits: Edits = {}
    stages = len(config["depths"])
    for i in range(stages):
        stride = 4 * 2**i
        edits[f"stage_{i}/{_POSITIONS}"] = functools.partial(
            resize_posembed,
            old_grid=(old[0] // stride, old[1] // stride),
            new_grid=(new[0] // stride, new[1] // stride),
            num_prefix=int(i == stages - 1),
            method=method,
        )
    return edits


FAMILIES = {
    "pvt": Names(
        {"hf": hf, "torch": torch},
        points=block_points("pvt.encoder.block.{i}.{j}"),
        image_size=_image_size,
        resize=_resize,
    )
}

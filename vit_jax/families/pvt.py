"""Pyramid Vision Transformer (Wang et al. 2021, arXiv:2102.12122, Table 1).

Top-1: the official README of whai362/PVT.

Names: Pyramid Vision Transformer: the official code's names, and Hugging Face's.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    Edits,
    Family,
    HuggingFace,
    Layout,
    Shapes,
    Size,
)
from vit_jax.families.parts import (
    CONV,
    DENSE,
    HEADS,
    NORM,
    OUT,
    PATCH_EMBEDDING,
    REDUCED_ATTENTION,
    REDUCTION,
    SMALL_STAGES,
    always,
    architecture,
    block_points,
    encoder_block,
    imagenet,
)
from vit_jax.families.resize import resize_posembed, square
from vit_jax.families.rules import Table, rule, under


def _pvt(size: str, depths: tuple[int, ...], top1: float) -> Architecture:
    config = {
        "hidden_sizes": (64, 128, 320, 512),
        "depths": depths,
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": (8, 8, 4, 4),
        "sr_ratios": (8, 4, 2, 1),
    }
    source = f"Zetatech/pvt-{size}-224"
    return architecture(config, imagenet(224, 0.875), top1, layout="hf", source=source)


_POSITIONS = "posembed_input/pos_embedding"
_ATTENTION = "MultiHeadDotProductAttention_0"


def torch(config: Config) -> Table:
    """The names in whai362/PVT, classification/pvt.py."""
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
    """The names of transformers' `PvtForImageClassification`."""
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


_NUMERICS = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    # Its tables are for a square. It reads them as any map of as many cells.
    side = math.isqrt(math.prod(image_size))
    strides = [4 * 2**i for i in range(len(config["depths"]))]
    if any((side // s) ** 2 != math.prod(x // s for x in image_size) for s in strides):
        raise UserError(
            f"Hugging Face's PVT takes square images; got {image_size[0]}×{image_size[1]}"
        )
    return {
        "image_size": side,
        "depths": list(config["depths"]),
        "num_encoder_blocks": len(config["depths"]),
        "hidden_sizes": list(config["hidden_sizes"]),
        "num_attention_heads": list(config["num_heads"]),
        "mlp_ratios": list(config["mlp_ratios"]),
        "sequence_reduction_ratios": list(config["sr_ratios"]),
        "patch_sizes": [4, *[2] * (len(strides) - 1)],
        "strides": [4, *[2] * (len(strides) - 1)],
        "qkv_bias": True,
        **_NUMERICS,
    }


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_sizes": tuple(fields["hidden_sizes"]),
        "depths": tuple(fields["depths"]),
        "num_heads": tuple(fields["num_attention_heads"]),
        "mlp_ratios": tuple(fields["mlp_ratios"]),
        "sr_ratios": tuple(fields["sequence_reduction_ratios"]),
    }


_EPS = Difference("LayerNorm eps of patches and reductions", "1e-5", "1e-6")

FAMILIES = {
    "pvt": Family(
        title="PVT",
        stem=lambda config: ("stage_0/embedding/conv/kernel",),
        paper="2102.12122",
        model="pvt:PyramidVisionTransformer",
        computes="GELU in its erf form, LayerNorm eps 1e-6, that of patches and reductions 1e-5",
        architectures={
            "pvt_tiny": _pvt("tiny", (2, 2, 2, 2), 75.1),
            "pvt_small": _pvt("small", (3, 4, 6, 3), 79.8),
            "pvt_medium": _pvt("medium", (3, 4, 18, 3), 81.2),
            "pvt_large": _pvt("large", (3, 8, 27, 3), 81.7),
        },
        layouts={
            "hf": Layout(
                hf,
                points=block_points("pvt.encoder.block.{i}.{j}"),
                differences=lambda config: [_EPS],
                unsaid=lambda config: [_EPS],
                build=HuggingFace(
                    "pvt",
                    ("PvtForImageClassification", None),
                    _write_hf,
                    _read_hf,
                    shipped=_NUMERICS,
                    ours=_NUMERICS,
                    eps={r"patch_embeddings|attention\.self": 1e-5},
                ),
            ),
            "torch": Layout(torch),
        },
        small=always(SMALL_STAGES),
        reference="hf",
        image_size=_image_size,
        resize=_resize,
        resize_method="official",
    ),
}

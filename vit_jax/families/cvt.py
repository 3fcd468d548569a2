"""Convolutional vision Transformer (Wu et al. 2021, arXiv:2103.15808, Table 2).

Top-1: the official README of microsoft/CvT; that of W24 after ImageNet-22k, at 384 pixels.

Names: Convolutional vision Transformer: the official code's names, and Hugging Face's.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.families.family import (
    Architecture,
    Config,
    Difference,
    Family,
    HuggingFace,
    Layout,
    Size,
)
from vit_jax.families.parts import (
    BATCH_NORM,
    CONV,
    CONV_NORM,
    DENSE,
    HEADS,
    KERNEL,
    NORM,
    OUT,
    PATCH_EMBEDDING,
    always,
    architecture,
    block_points,
    encoder_block,
    imagenet,
)
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import Table, rule, under


def _config(
    depths: tuple[int, ...], widths: tuple[int, ...], heads: tuple[int, ...]
) -> dict[str, Any]:
    return {
        "hidden_sizes": widths,
        "depths": depths,
        "num_heads": heads,
        "mlp_ratios": (4, 4, 4),
        "activation": "quick_gelu",
    }


_SMALL = {"widths": (64, 192, 384), "heads": (1, 3, 6)}
_W24 = _config((2, 2, 20), (192, 768, 1024), (3, 12, 16))


_PROJECTED = ("query", "key", "value")


def torch(config: Config) -> Table:
    """The names in microsoft/CvT, lib/models/cls_cvt.py."""
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
    """The names of transformers' `CvtForImageClassification`."""
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


def _cvt(config: dict[str, Any], images: Preprocess, top1: float, name: str) -> Architecture:
    return architecture(config, images, top1, layout="hf", source=f"microsoft/{name}")


def _write_hf(config: Config, image_size: Size) -> dict[str, Any]:
    del image_size  # it takes any
    if any(depth <= i for i, depth in enumerate(config["depths"])):
        raise UserError(
            "Hugging Face's CvT cannot be built with fewer than 1, 2, 3 blocks a stage; got "
            f"{tuple(config['depths'])}"
        )
    stages = len(config["depths"])
    return {
        "depth": list(config["depths"]),
        "embed_dim": list(config["hidden_sizes"]),
        "num_heads": list(config["num_heads"]),
        "mlp_ratio": [float(ratio) for ratio in config["mlp_ratios"]],
        "patch_sizes": [7, *[3] * (stages - 1)],
        "patch_stride": [4, *[2] * (stages - 1)],
        "patch_padding": [2, *[1] * (stages - 1)],
        "qkv_bias": [True] * stages,
        "cls_token": [i == stages - 1 for i in range(stages)],
        "qkv_projection_method": ["dw_bn"] * stages,
        "kernel_qkv": [3] * stages,
        "padding_kv": [1] * stages,
        "stride_kv": [2] * stages,
        "padding_q": [1] * stages,
        "stride_q": [1] * stages,
        "drop_path_rate": [0.0] * stages,
        "drop_rate": [0.0] * stages,
        "attention_drop_rate": [0.0] * stages,
    }


def _read_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        "hidden_sizes": tuple(fields["embed_dim"]),
        "depths": tuple(fields["depth"]),
        "num_heads": tuple(fields["num_heads"]),
        "activation": "gelu",
    }
    ratios = fields.get("mlp_ratio", [4] * len(fields["depth"]))
    if any(ratio != int(ratio) for ratio in ratios):
        raise ValueError(f"whole mlp_ratio, but {ratios}")
    return config | {"mlp_ratios": tuple(map(int, ratios))}


def _quick_gelu(config: Config) -> bool:
    return config.get("activation", "quick_gelu") == "quick_gelu"


_GELU = Difference("GELU", "x σ(1.702 x)", "erf form")


def _hf_differences(config: Config) -> list[Difference]:
    return [_GELU] if _quick_gelu(config) else []


FAMILIES = {
    "cvt": Family(
        title="CvT",
        stem=lambda config: ("stage_0/embedding/conv/kernel",),
        paper="2103.15808",
        model="cvt:ConvolutionalVisionTransformer",
        computes="GELU as x σ(1.702 x), LayerNorm eps 1e-5",
        architectures={
            "cvt_13": _cvt(_config((1, 2, 10), **_SMALL), imagenet(224, 0.875), 81.6, "cvt-13"),
            "cvt_21": _cvt(_config((1, 4, 16), **_SMALL), imagenet(224, 0.875), 82.5, "cvt-21"),
            "cvt_w24": _cvt(_W24, imagenet(384, 1.0, resize="squash"), 87.6, "cvt-w24-384-22k"),
        },
        layouts={
            "hf": Layout(
                hf,
                points=block_points("cvt.encoder.stages.{i}.layers.{j}"),
                differences=_hf_differences,
                unsaid=_hf_differences,
                build=HuggingFace(
                    "cvt",
                    ("CvtForImageClassification", None),
                    _write_hf,
                    _read_hf,
                    activations=lambda config: (
                        {r"\.intermediate$": "quick_gelu"} if _quick_gelu(config) else {}
                    ),
                    remark="transformers computes CvT with GELU in its erf form; the published "
                    "weights were trained with x σ(1.702 x), as the registered models compute",
                ),
            ),
            "torch": Layout(torch),
        },
        small=always({"hidden_sizes": (16, 32, 64), "depths": (1, 1, 1), "num_heads": (1, 2, 4)}),
        reference="hf",
    ),
}

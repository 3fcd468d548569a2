"""Compact Convolutional Transformers (Hassani et al. 2021, arXiv:2104.05704, Tables 1 and 2).

The number behind `cct` is that of the blocks, `7x2` means two convolutions of 7×7. Those for
images of 32 have CIFAR-10's classes and pixel statistics. Top-1: the official README of
SHI-Labs/Compact-Transformers.

Names: CCT, as the official code and vit-pytorch call it: the same names.
"""

from typing import Any

from vit_jax.families.family import Architecture, Config, Family, Layout, Size, channels
from vit_jax.families.parts import (
    DENSE,
    ERF_EPS5,
    KERNEL,
    NORM,
    OUT,
    POSITIONS,
    QKV,
    SMALL,
    always,
    architecture,
    encoder_points,
    imagenet,
    merged,
    positions,
)
from vit_jax.families.rules import Table, rule, under

# Blocks, heads, width and MLP width.
_SIZES = {
    2: (2, 2, 128, 128),
    4: (4, 2, 128, 128),
    6: (6, 4, 256, 512),
    7: (7, 4, 256, 512),
    14: (14, 6, 384, 1152),
}
_CIFAR10 = imagenet(32, 1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))


def _config(size: int, kernel: int, convolutions: int) -> dict[str, Any]:
    depth, heads, width, mlp_dim = _SIZES[size]
    stride = {3: 1, 7: 2}[kernel]
    return {
        "num_convolutions": convolutions,
        "kernel_size": kernel,
        "stride": stride,
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": mlp_dim,
        "attention_dropout_rate": 0.1,
        "drop_path_rate": 0.1,
    }


def _cifar(size: int, convolutions: int) -> Architecture:
    return architecture(
        _config(size, 3, convolutions), _CIFAR10, num_classes=10, layout="vit_pytorch"
    )


_ATTENTION = under("qkv", "", merged(QKV, bias=False)) + under("proj", "out", OUT)
_BLOCK = (
    under("pre_norm", "LayerNorm_0", NORM)
    + under("self_attn", "MultiHeadDotProductAttention_0", _ATTENTION)
    + under("norm1", "LayerNorm_1", NORM)
    + under("linear1", "MlpBlock_0/Dense_0", DENSE)
    + under("linear2", "MlpBlock_0/Dense_1", DENSE)
)


def _cct(config: Config) -> Table:
    rows = rule("classifier.positional_emb", POSITIONS)
    for i in range(config["num_convolutions"]):
        rows += under(f"tokenizer.conv_layers.{i}.0", f"tokenizer/conv_{i}", KERNEL)
    for i in range(config["num_layers"]):
        block = f"Transformer/encoderblock_{i}"
        rows += under(f"classifier.blocks.{i}", block, _BLOCK, heads=config["num_heads"])
    return (
        rows
        + under("classifier.norm", "Transformer/encoder_norm", NORM)
        + under("classifier.attention_pool", "attention_pool", DENSE)
        + under("classifier.fc", "head", DENSE)
    )


def _stride(config: Config) -> Size:
    stride = (2 * config["stride"]) ** config["num_convolutions"]
    return stride, stride


def _vit_pytorch_args(config: Config, num_classes: int, image_size: Size) -> dict[str, Any]:
    width = config["hidden_size"]
    return {
        "img_size": image_size,
        "n_input_channels": channels(config),
        "embedding_dim": width,
        "n_conv_layers": config["num_convolutions"],
        "kernel_size": config["kernel_size"],
        "stride": config["stride"],
        "padding": config["kernel_size"] // 2,
        "num_layers": config["num_layers"],
        "num_heads": config["num_heads"],
        "mlp_ratio": config["mlp_dim"] / width,
        "num_classes": num_classes or 1,
        "positional_embedding": "learnable",
    }


def _imagenet(image_size: int, top1: float) -> Architecture:
    return architecture(_config(14, 7, 2), imagenet(image_size), top1, layout="vit_pytorch")


FAMILIES = {
    "cct": Family(
        title="CCT",
        stem=lambda config: ("tokenizer/conv_0/kernel",),
        paper="2104.05704",
        model="cct:CCT",
        computes=ERF_EPS5,
        architectures={f"cct_{n}_3x{k}_32": _cifar(n, k) for n in (2, 4, 6, 7) for k in (1, 2)}
        | {
            "cct_14_7x2_224": _imagenet(224, 80.67),
            "cct_14_7x2_384": _imagenet(384, 82.71),
        },
        layouts={
            "vit_pytorch": Layout(
                _cct,
                points=encoder_points(
                    # vit-pytorch adds positions in place: a module before that shows them too.
                    embedding=("posembed_input", "classifier.dropout"),
                    blocks="classifier.blocks",
                    norm="classifier.norm",
                ),
                build=_vit_pytorch_args,
            )
        },
        small=always(SMALL),
        reference="vit_pytorch",
        **positions(prefix=0, stride=_stride, padded=True),
    ),
}

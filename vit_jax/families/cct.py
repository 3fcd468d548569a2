"""Compact Transformers: CCT, CVT and ViT-Lite (Hassani et al. 2021, arXiv:2104.05704, Tables 1, 2).

The number behind `cct`, `cvt` and `vit` is that of the blocks, `7x2` means two convolutions of 7×7,
`4_32` patches of 4×4 and images of 32, which have CIFAR-10's classes and pixel statistics. Top-1:
the official README of SHI-Labs/Compact-Transformers.

Names: Compact Transformers in the official code; vit-pytorch, which has CCT only, uses the same.
Its `cvt_*_sine` learn their positions all the same: here, sines are sines.
"""

from typing import Any

import numpy as np

from vit_jax.families.family import (
    Architecture,
    Config,
    Edits,
    Family,
    Layout,
    Size,
    channels,
)
from vit_jax.families.parts import (
    CONV,
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
from vit_jax.layers.sincos import sinusoid

# Blocks, heads, width and MLP width.
_SIZES = {
    2: (2, 2, 128, 128),
    4: (4, 2, 128, 128),
    6: (6, 4, 256, 512),
    7: (7, 4, 256, 512),
    14: (14, 6, 384, 1152),
}
_CIFAR10 = imagenet(32, 1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))


def _sizes(size: int) -> dict[str, Any]:
    depth, heads, width, mlp_dim = _SIZES[size]
    return {
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": mlp_dim,
        "attention_dropout_rate": 0.1,
        "drop_path_rate": 0.1,
    }


def _convolutional(size: int, kernel: int, convolutions: int) -> dict[str, Any]:
    stride = {3: 1, 7: 2}[kernel]
    tokenizer = {"num_convolutions": convolutions, "kernel_size": kernel, "stride": stride}
    return tokenizer | _sizes(size)


def _cifar(size: int, convolutions: int) -> Architecture:
    config = _convolutional(size, 3, convolutions)
    return architecture(config, _CIFAR10, num_classes=10, layout="vit_pytorch")


def _patches(size: int, class_token: bool) -> Architecture:
    config = {"patch_size": 4, "class_token": class_token} | _sizes(size)
    return architecture(config, _CIFAR10, num_classes=10, layout="torch")


_ATTENTION = under("qkv", "", merged(QKV, bias=False)) + under("proj", "out", OUT)
_BLOCK = (
    under("pre_norm", "LayerNorm_0", NORM)
    + under("self_attn", "MultiHeadDotProductAttention_0", _ATTENTION)
    + under("norm1", "LayerNorm_1", NORM)
    + under("linear1", "MlpBlock_0/Dense_0", DENSE)
    + under("linear2", "MlpBlock_0/Dense_1", DENSE)
)


def _cct(config: Config) -> Table:
    rows = []
    for i in range(config["num_convolutions"]):
        rows += under(f"tokenizer.conv_layers.{i}.0", f"tokenizer/conv_{i}", KERNEL)
    return rows + _classifier(config, pools=True)


def _vit_lite(config: Config) -> Table:
    rows = under("tokenizer.conv_layers.0.0", "embedding", CONV)
    if config["class_token"]:
        rows += rule("classifier.class_emb", "cls")
    return rows + _classifier(config, pools=not config["class_token"])


def _classifier(config: Config, *, pools: bool) -> Table:
    """The names of the official `TransformerClassifier`."""
    rows = rule("classifier.positional_emb", POSITIONS) if _has_positions(config) else []
    for i in range(config["num_layers"]):
        block = f"Transformer/encoderblock_{i}"
        rows += under(f"classifier.blocks.{i}", block, _BLOCK, heads=config["num_heads"])
    return (
        rows
        + under("classifier.norm", "Transformer/encoder_norm", NORM)
        + (under("classifier.attention_pool", "attention_pool", DENSE) if pools else [])
        + under("classifier.fc", "head", DENSE)
    )


def _has_positions(config: Config) -> bool:
    return config.get("position_embedding") != "none"


def _fitting(**fields: Any) -> dict[str, Any]:
    """`positions`, of which sines are computed anew for another image size."""
    known = positions(**fields, present=_has_positions)

    def resize(config: Config, old: Size, new: Size, method: str) -> Edits:
        edits = known["resize"](config, old, new, method)
        if config.get("position_embedding") != "sine":
            return edits

        def computed(table: np.ndarray) -> np.ndarray:
            _, length, width = edits[POSITIONS](table).shape
            return sinusoid(length, width, dtype=table.dtype)

        return {POSITIONS: computed}

    return {**known, "resize": resize}


def _frozen(config: Config) -> tuple[str, ...]:
    return (POSITIONS,) if config.get("position_embedding") == "sine" else ()


def _stride(config: Config) -> Size:
    stride = (2 * config["stride"]) ** config["num_convolutions"]
    return stride, stride


_IN_VIT_PYTORCH = {"learned": "learnable", "sine": "sine", "none": "none"}


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
        "positional_embedding": _IN_VIT_PYTORCH[config.get("position_embedding", "learned")],
    }


def _imagenet(image_size: int, top1: float) -> Architecture:
    return architecture(_convolutional(14, 7, 2), imagenet(image_size), top1, layout="vit_pytorch")


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
        official="vit_pytorch",
        frozen=_frozen,
        **_fitting(prefix=0, stride=_stride, padded=True),
    ),
    "vit_lite": Family(
        title="ViT-Lite, CVT",
        paper="2104.05704",
        model="cct:ViTLite",
        computes=ERF_EPS5,
        architectures={f"vit_{n}_4_32": _patches(n, class_token=True) for n in (2, 4, 6, 7)}
        | {f"cvt_{n}_4_32": _patches(n, class_token=False) for n in (2, 4, 6, 7)},
        layouts={
            "torch": Layout(
                _vit_lite,
                points=encoder_points(
                    embedding=("embedding", "tokenizer"),
                    blocks="classifier.blocks",
                    norm="classifier.norm",
                ),
            )
        },
        small=always(SMALL),
        reference="torch",
        frozen=_frozen,
        **_fitting(prefix=lambda config: int(config["class_token"])),
    ),
}

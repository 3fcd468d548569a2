"""Compact Convolutional Transformers (Hassani et al. 2021, arXiv:2104.05704, Tables 1 and 2).

The number behind `cct` is that of the blocks, `7x2` means two convolutions of 7×7. Those for
images of 32 have CIFAR-10's classes and pixel statistics. Top-1: the official README of
SHI-Labs/Compact-Transformers.
"""

from typing import Any

from vit_jax.models.variants import SMALL, Family, Variant, timm_preprocess

# Blocks, heads, width and MLP width.
_SIZES = {
    2: (2, 2, 128, 128),
    4: (4, 2, 128, 128),
    6: (6, 4, 256, 512),
    7: (7, 4, 256, 512),
    14: (14, 6, 384, 1152),
}
_CIFAR10 = timm_preprocess(32, 1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))


def _config(size: int, kernel: int, convolutions: int) -> dict[str, Any]:
    depth, heads, width, mlp_dim = _SIZES[size]
    stride = {3: 1, 7: 2}[kernel]
    return {
        "tokenizer": {"num_layers": convolutions, "kernel": kernel, "stride": stride},
        "hidden_size": width,
        "transformer": {
            "num_layers": depth,
            "num_heads": heads,
            "mlp_dim": mlp_dim,
            "attention_dropout_rate": 0.1,
            "drop_path_rate": 0.1,
        },
    }


def _cifar(size: int, convolutions: int) -> Variant:
    return Variant(_config(size, 3, convolutions), _CIFAR10, num_classes=10)


FAMILIES = {
    "cct": Family(
        small=SMALL,
        title="CCT",
        paper="2104.05704",
        model="cct:CCT",
        tables="cct",
        reference="vit_pytorch",
        variants={f"cct_{n}_3x{k}_32": _cifar(n, k) for n in (2, 4, 6, 7) for k in (1, 2)}
        | {
            "cct_14_7x2_224": Variant(_config(14, 7, 2), timm_preprocess(224), 80.67),
            "cct_14_7x2_384": Variant(_config(14, 7, 2), timm_preprocess(384), 82.71),
        },
    ),
}

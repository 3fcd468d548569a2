"""Convolutional vision Transformer (Wu et al. 2021, arXiv:2103.15808, Table 2).

Top-1: the official README of microsoft/CvT; that of W24 after ImageNet-22k, at 384 pixels.
"""

from typing import Any

from vit_jax.models.variants import Family, Variant, timm_preprocess


def _config(
    depths: tuple[int, ...], widths: tuple[int, ...], heads: tuple[int, ...]
) -> dict[str, Any]:
    return {"embed_dims": widths, "depths": depths, "num_heads": heads, "activation": "quick_gelu"}


_SMALL = {"widths": (64, 192, 384), "heads": (1, 3, 6)}
_W24 = _config((2, 2, 20), (192, 768, 1024), (3, 12, 16))

FAMILIES = {
    "cvt": Family(
        small={"embed_dims": (16, 32, 64), "depths": (1, 1, 1), "num_heads": (1, 2, 4)},
        title="CvT",
        paper="2103.15808",
        model="cvt:ConvolutionalVisionTransformer",
        tables="cvt",
        reference="hf",
        variants={
            "cvt_13": Variant(_config((1, 2, 10), **_SMALL), timm_preprocess(224, 0.875), 81.6),
            "cvt_21": Variant(_config((1, 4, 16), **_SMALL), timm_preprocess(224, 0.875), 82.5),
            "cvt_w24": Variant(_W24, timm_preprocess(384, 1.0, resize="squash"), 87.6),
        },
    )
}

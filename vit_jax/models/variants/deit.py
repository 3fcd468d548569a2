"""DeiT (Touvron et al. 2021, arXiv:2012.12877, Tables 1 and 5) and DeiT III.

DeiT III: Touvron et al. 2022, arXiv:2204.07118, Table 1. Top-1: the official README of
facebookresearch/deit.
"""

from typing import Any

from vit_jax.models.variants import SMALL, Family, Variant, timm_preprocess

# Width, depth and heads; the MLP is four times as wide as a token (arXiv:2012.12877, Table 1).
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


def _config(size: str, patch: int) -> dict[str, Any]:
    width, depth, heads = _SIZES[size]
    return {
        "patches": {"size": (patch, patch)},
        "hidden_size": width,
        "transformer": {"num_layers": depth, "num_heads": heads, "mlp_dim": 4 * width},
    }


def _deit(size: str, image_size: int, top1: float, patch: int = 16) -> Variant:
    crop = 0.9 if image_size == 224 else 1.0
    return Variant(_config(size, patch), timm_preprocess(image_size, crop), top1)


FAMILIES = {
    "deit": Family(
        small=SMALL,
        title="DeiT",
        paper="2012.12877",
        model="deit:DeiT",
        tables="deit",
        variants={
            "deit_tiny_patch16_224": _deit("tiny", 224, 72.2),
            "deit_small_patch16_224": _deit("small", 224, 79.9),
            "deit_base_patch16_224": _deit("base", 224, 81.8),
            "deit_base_patch16_384": _deit("base", 384, 82.9),
        },
    ),
    "deit_distilled": Family(
        small=SMALL,
        title="DeiT distilled",
        paper="2012.12877",
        model="deit:DistilledDeiT",
        tables="deit",
        variants={
            "deit_tiny_distilled_patch16_224": _deit("tiny", 224, 74.5),
            "deit_small_distilled_patch16_224": _deit("small", 224, 81.2),
            "deit_base_distilled_patch16_224": _deit("base", 224, 83.4),
            "deit_base_distilled_patch16_384": _deit("base", 384, 85.2),
        },
    ),
    "deit3": Family(
        small=SMALL,
        title="DeiT III",
        paper="2204.07118",
        model="deit:DeiT3",
        tables="deit",
        variants={
            "deit3_small_patch16_224": _deit("small", 224, 81.4),
            "deit3_small_patch16_384": _deit("small", 384, 83.4),
            "deit3_base_patch16_224": _deit("base", 224, 83.8),
            "deit3_base_patch16_384": _deit("base", 384, 85.0),
            "deit3_large_patch16_224": _deit("large", 224, 84.9),
            "deit3_large_patch16_384": _deit("large", 384, 85.8),
            "deit3_huge_patch14_224": _deit("huge", 224, 85.2, patch=14),
        },
    ),
}

"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030, section 3.3).

Top-1: the official README of microsoft/Swin-Transformer, pretrained on ImageNet-1k where it has
that, else (large) on ImageNet-22k.
"""

from vit_jax.models.variants import Family, Variant, timm_preprocess

# Width of the first stage, depths, heads (ibid.).
_SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def _swin(size: str, top1: float, window: int = 7) -> Variant:
    width, depths, heads = _SIZES[size]
    config = {
        "embed_dim": width,
        "depths": depths,
        "num_heads": heads,
        "window_size": window,
        "patch_size": 4,
    }
    image_size, crop = (224, 0.9) if window == 7 else (384, 1.0)
    return Variant(config, timm_preprocess(image_size, crop), top1)


FAMILIES = {
    "swin": Family(
        small={
            "embed_dim": 16,
            "depths": (2, 1, 1, 1),
            "num_heads": (1, 2, 4, 8),
            "window_size": 4,
        },
        title="Swin",
        paper="2103.14030",
        model="swin:SwinTransformer",
        tables="swin",
        variants={
            "swin_tiny_patch4_window7_224": _swin("tiny", 81.2),
            "swin_small_patch4_window7_224": _swin("small", 83.2),
            "swin_base_patch4_window7_224": _swin("base", 83.5),
            "swin_base_patch4_window12_384": _swin("base", 84.5, window=12),
            "swin_large_patch4_window7_224": _swin("large", 86.3),
            "swin_large_patch4_window12_384": _swin("large", 87.3, window=12),
        },
    )
}

"""CrossViT (Chen et al. 2021, arXiv:2103.14899, Tables 1 and 2: sizes and top-1).

timm's names say the image that goes in, 240 or 408 pixels; the paper's say what the branch of
large patches sees of it, 224 or 384.
"""

from vit_jax.models.variants import Family, Variant, timm_preprocess

# Widths of the two branches, their heads, ratio of the MLP, blocks of the branch of large patches
# in each of three encoders; top-1.
_SIZES = {
    "tiny": ((96, 192), 3, 4, 4, 73.4),
    "small": ((192, 384), 6, 4, 4, 81.0),
    "base": ((384, 768), 12, 4, 4, 82.2),
    "9": ((128, 256), 4, 3, 3, 73.9),
    "15": ((192, 384), 6, 3, 5, 81.5),
    "18": ((224, 448), 7, 3, 6, 82.5),
}


def _crossvit(size: str) -> Variant:
    widths, heads, mlp_ratio, depth, top1 = _SIZES[size]
    config = {
        "patch_sizes": (12, 16),
        "image_scales": (1.0, 224 / 240),
        "hidden_sizes": widths,
        "num_heads": (heads, heads),
        "mlp_ratios": (mlp_ratio, mlp_ratio),
        "depths": ((1, depth),) * 3,
    }
    return Variant(config, timm_preprocess(240, 0.875), top1)


def _dagger(size: str, top1: float, image_size: int = 240) -> Variant:
    seen, crop = (224, 0.875) if image_size == 240 else (384, 1.0)
    changed = {"image_scales": (1.0, seen / image_size), "conv_embedding": True}
    config = {**_crossvit(size).config, **changed}
    return Variant(config, timm_preprocess(image_size, crop), top1)


FAMILIES = {
    "crossvit": Family(
        small={"hidden_sizes": (16, 32), "num_heads": (2, 2), "depths": ((1, 1),)},
        title="CrossViT",
        paper="2103.14899",
        model="crossvit:CrossViT",
        tables="crossvit",
        variants={
            **{f"crossvit_{size}_240": _crossvit(size) for size in _SIZES},
            "crossvit_9_dagger_240": _dagger("9", 77.1),
            "crossvit_15_dagger_240": _dagger("15", 82.3),
            "crossvit_18_dagger_240": _dagger("18", 82.8),
            "crossvit_15_dagger_408": _dagger("15", 83.5, 408),
            "crossvit_18_dagger_408": _dagger("18", 83.9, 408),
        },
    )
}

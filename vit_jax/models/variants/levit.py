"""LeViT (Graham et al. 2021, arXiv:2104.01136, Table 1).

Top-1: the official README of facebookresearch/LeViT.
"""

from vit_jax.models.variants import Family, Variant, timm_preprocess

# Widths and heads of the three stages, blocks in each, width of a key, top-1.
_SIZES = {
    "128s": ((128, 256, 384), (4, 6, 8), (2, 3, 4), 16, 76.6),
    "128": ((128, 256, 384), (4, 8, 12), (4, 4, 4), 16, 78.6),
    "192": ((192, 288, 384), (3, 5, 6), (4, 4, 4), 32, 80.0),
    "256": ((256, 384, 512), (4, 6, 8), (4, 4, 4), 32, 81.6),
    "384": ((384, 512, 768), (6, 9, 12), (4, 4, 4), 32, 82.6),
}


def _levit(size: str) -> Variant:
    widths, heads, depths, key_dim, top1 = _SIZES[size]
    config = {"hidden_sizes": widths, "num_heads": heads, "depths": depths, "key_dim": key_dim}
    return Variant(config, timm_preprocess(224), top1)


_SMALL = {
    "hidden_sizes": (32, 48, 64),
    "num_heads": (2, 3, 4),
    "depths": (1, 1, 1),
    "key_dim": 8,
}

FAMILIES = {
    "levit": Family(
        small=_SMALL,
        title="LeViT",
        paper="2104.01136",
        model="levit:LeViT",
        tables="levit",
        variants={f"levit_{size}": _levit(size) for size in _SIZES},
    ),
    "levit_conv": Family(
        small=_SMALL,
        title="LeViT, convolutional layout",
        paper="2104.01136",
        model="levit:LeViTConv",
        tables="levit",
        variants={f"levit_conv_{size}": _levit(size) for size in _SIZES},
    ),
}

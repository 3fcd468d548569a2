"""Pyramid Vision Transformer (Wang et al. 2021, arXiv:2102.12122, Table 1).

Top-1: the official README of whai362/PVT.
"""

from vit_jax.models.variants import SMALL_STAGES, Family, Variant, timm_preprocess


def _pvt(depths: tuple[int, ...], top1: float) -> Variant:
    config = {
        "embed_dims": (64, 128, 320, 512),
        "depths": depths,
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": (8, 8, 4, 4),
        "sr_ratios": (8, 4, 2, 1),
    }
    return Variant(config, timm_preprocess(224, 0.875), top1)


FAMILIES = {
    "pvt": Family(
        small=SMALL_STAGES,
        title="PVT",
        paper="2102.12122",
        model="pvt:PyramidVisionTransformer",
        tables="pvt",
        reference="hf",
        variants={
            "pvt_tiny": _pvt((2, 2, 2, 2), 75.1),
            "pvt_small": _pvt((3, 4, 6, 3), 79.8),
            "pvt_medium": _pvt((3, 4, 18, 3), 81.2),
            "pvt_large": _pvt((3, 8, 27, 3), 81.7),
        },
    )
}

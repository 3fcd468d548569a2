"""Pyramid Vision Transformer v2 (Wang et al. 2022, arXiv:2106.13797, Table 1).

Top-1: the official README of whai362/PVT.
"""

from vit_jax.models.variants import SMALL_STAGES, Family, Variant, timm_preprocess

_WIDTHS = (64, 128, 320, 512)


def _pvt(
    depths: tuple[int, ...],
    top1: float,
    *,
    widths: tuple[int, ...] = _WIDTHS,
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
    linear: bool = False,
) -> Variant:
    config = {
        "embed_dims": widths,
        "depths": depths,
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": mlp_ratios,
        "sr_ratios": (8, 4, 2, 1),
        "linear": linear,
    }
    return Variant(config, timm_preprocess(224), top1)


FAMILIES = {
    "pvt_v2": Family(
        small=SMALL_STAGES,
        title="PVT v2",
        paper="2106.13797",
        model="pvt_v2:PyramidVisionTransformerV2",
        tables="pvt_v2",
        variants={
            "pvt_v2_b0": _pvt((2, 2, 2, 2), 70.5, widths=(32, 64, 160, 256)),
            "pvt_v2_b1": _pvt((2, 2, 2, 2), 78.7),
            "pvt_v2_b2": _pvt((3, 4, 6, 3), 82.0),
            "pvt_v2_b2_li": _pvt((3, 4, 6, 3), 82.1, linear=True),
            "pvt_v2_b3": _pvt((3, 4, 18, 3), 83.1),
            "pvt_v2_b4": _pvt((3, 8, 27, 3), 83.6),
            "pvt_v2_b5": _pvt((3, 6, 40, 3), 83.8, mlp_ratios=(4, 4, 4, 4)),
        },
    )
}

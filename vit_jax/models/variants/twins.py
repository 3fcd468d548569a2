"""Twins-SVT and Twins-PCPVT (Chu et al. 2021, arXiv:2104.13840), sizes as in the official code.

Top-1: the official README of Meituan-AutoML/Twins.
"""

from typing import Any

from vit_jax.models.variants import SMALL_STAGES, Family, Variant, timm_preprocess


def _svt(width: int, depths: tuple[int, ...], heads: int, top1: float) -> Variant:
    """Widths and heads double with every stage."""
    config = {
        "embed_dims": tuple(width * 2**i for i in range(4)),
        "depths": depths,
        "num_heads": tuple(heads * 2**i for i in range(4)),
        "mlp_ratios": (4, 4, 4, 4),
        "window_size": 7,
    }
    return _variant(config, top1)


def _pcpvt(depths: tuple[int, ...], top1: float) -> Variant:
    config = {
        "embed_dims": (64, 128, 320, 512),
        "depths": depths,
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": (8, 8, 4, 4),
        "window_size": None,
    }
    return _variant(config, top1)


def _variant(config: dict[str, Any], top1: float) -> Variant:
    return Variant(config | {"sr_ratios": (8, 4, 2, 1)}, timm_preprocess(224), top1)


FAMILIES = {
    "twins": Family(
        small=SMALL_STAGES,
        title="Twins",
        paper="2104.13840",
        model="twins:Twins",
        tables="twins",
        variants={
            "twins_svt_small": _svt(64, (2, 2, 10, 4), 2, 81.7),
            "twins_svt_base": _svt(96, (2, 2, 18, 2), 3, 83.2),
            "twins_svt_large": _svt(128, (2, 2, 18, 2), 4, 83.7),
            "twins_pcpvt_small": _pcpvt((3, 4, 6, 3), 81.2),
            "twins_pcpvt_base": _pcpvt((3, 4, 18, 3), 82.7),
            "twins_pcpvt_large": _pcpvt((3, 8, 27, 3), 83.1),
        },
    )
}

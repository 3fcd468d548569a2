"""LV-ViT (Jiang et al. 2021, arXiv:2104.10858, Table 1).

Top-1 and rates of stochastic depth: the official README of zihangJiang/TokenLabeling.
"""

from vit_jax.families.preprocess import Preprocess
from vit_jax.models.variants import Family, Variant, timm_preprocess


def _lvvit(
    width: int,
    depth: int,
    heads: int,
    divisor: float,
    preprocess: Preprocess,
    top1: float,
    *,
    stem: int = 64,
    drop_path_rate: float = 0.1,
) -> Variant:
    config = {
        "patches": {"size": (16, 16)},
        "hidden_size": width,
        "residual_divisor": divisor,
        "stem_features": stem,
        "transformer": {
            "num_layers": depth,
            "num_heads": heads,
            "mlp_dim": 3 * width,
            "drop_path_rate": drop_path_rate,
        },
    }
    return Variant(config, preprocess, top1)


_CROPPED, _WHOLE = timm_preprocess(224), timm_preprocess(224, 1.0)
_LARGE = timm_preprocess(448, 1.0)

FAMILIES = {
    "lvvit": Family(
        small={
            "hidden_size": 32,
            "stem_features": 16,
            "transformer": {"num_layers": 2, "num_heads": 2, "mlp_dim": 32},
        },
        title="LV-ViT",
        paper="2104.10858",
        model="lvvit:LVViT",
        tables="lvvit",
        reference="tlt",
        variants={
            # The README gives no rate of stochastic depth for T.
            "lvvit_t": _lvvit(240, 12, 4, 1.0, _CROPPED, 79.1, drop_path_rate=0.0),
            "lvvit_s": _lvvit(384, 16, 6, 2.0, _CROPPED, 83.3),
            "lvvit_m": _lvvit(512, 20, 8, 2.0, _WHOLE, 84.0, drop_path_rate=0.2),
            "lvvit_l": _lvvit(768, 24, 12, 3.0, _LARGE, 86.2, stem=128, drop_path_rate=0.3),
        },
    ),
}

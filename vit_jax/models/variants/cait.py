"""CaiT (Touvron et al. 2021, arXiv:2103.17239, Table 3).

Top-1: the official README of facebookresearch/deit, and for XXS timm's results table.
"""

from vit_jax.models.variants import SMALL, Family, Variant, timm_preprocess

# Width and heads: 48 wide each.
_WIDTHS = {"xxs": (192, 4), "xs": (288, 6), "s": (384, 8), "m": (768, 16)}


def _cait(size: str, depth: int, image_size: int, top1: float, scale: float = 1e-5) -> Variant:
    width, heads = _WIDTHS[size]
    config = {
        "patches": {"size": (16, 16)},
        "hidden_size": width,
        "transformer": {
            "num_layers": depth,
            "num_heads": heads,
            "mlp_dim": 4 * width,
            "layer_scale_init": scale,
        },
    }
    return Variant(config, timm_preprocess(image_size, 1.0), top1)


FAMILIES = {
    "cait": Family(
        small=SMALL,
        title="CaiT",
        paper="2103.17239",
        model="cait:CaiT",
        tables="cait",
        variants={
            "cait_xxs24_224": _cait("xxs", 24, 224, 78.4),
            "cait_xxs24_384": _cait("xxs", 24, 384, 80.9),
            "cait_xxs36_224": _cait("xxs", 36, 224, 79.7),
            "cait_xxs36_384": _cait("xxs", 36, 384, 82.2),
            "cait_xs24_384": _cait("xs", 24, 384, 84.1),
            "cait_s24_224": _cait("s", 24, 224, 83.5),
            "cait_s24_384": _cait("s", 24, 384, 85.1),
            "cait_s36_384": _cait("s", 36, 384, 85.4, scale=1e-6),
            "cait_m36_384": _cait("m", 36, 384, 86.1, scale=1e-6),
            "cait_m48_448": _cait("m", 48, 448, 86.5, scale=1e-6),
        },
    ),
}

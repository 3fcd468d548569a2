"""TNT (Han et al. 2021, arXiv:2103.00112, Table 1). Top-1: the official README (huawei-noah)."""

from vit_jax.models.variants import Family, Variant, timm_preprocess

_HALF = (0.5, 0.5, 0.5)


def _tnt(width: int, heads: int, inner: int, top1: float) -> Variant:
    config = {
        "patch_size": 16,
        "hidden_size": width,
        "num_heads": heads,
        "inner_size": inner,
        "inner_heads": 4,
        "num_layers": 12,
    }
    return Variant(config, timm_preprocess(224, mean=_HALF, std=_HALF), top1)


FAMILIES = {
    "tnt": Family(
        small={
            "hidden_size": 48,
            "num_heads": 2,
            "inner_size": 12,
            "inner_heads": 2,
            "num_layers": 2,
        },
        title="TNT",
        paper="2103.00112",
        model="tnt:TNT",
        tables="tnt",
        variants={
            "tnt_s_patch16_224": _tnt(384, 6, 24, 81.5),
            "tnt_b_patch16_224": _tnt(640, 10, 40, 82.9),
        },
    )
}

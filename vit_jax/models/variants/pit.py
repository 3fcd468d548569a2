"""PiT (Heo et al. 2021, arXiv:2103.16302, Table 1). Top-1: the official README of naver-ai/pit."""

from vit_jax.models.variants import Family, Variant, timm_preprocess

# Width of a head, heads and blocks of the three stages, patch and its stride; top-1 without and
# with distillation.
_SIZES = {
    "ti": (32, (2, 4, 8), (2, 6, 4), 16, 8, 73.0, 74.6),
    "xs": (48, (2, 4, 8), (2, 6, 4), 16, 8, 78.1, 79.1),
    "s": (48, (3, 6, 12), (2, 6, 4), 16, 8, 80.9, 81.9),
    "b": (64, (4, 8, 16), (3, 6, 4), 14, 7, 82.0, 84.0),
}


def _pit(size: str, *, distilled: bool = False) -> Variant:
    head_dim, heads, depths, patch, stride, top1, distilled_top1 = _SIZES[size]
    config = {
        "patch_size": patch,
        "stride": stride,
        "hidden_sizes": tuple(head_dim * n for n in heads),
        "num_heads": heads,
        "depths": depths,
    }
    return Variant(config, timm_preprocess(224), distilled_top1 if distilled else top1)


_SMALL = {"hidden_sizes": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 1)}

FAMILIES = {
    "pit": Family(
        small=_SMALL,
        title="PiT",
        paper="2103.16302",
        model="pit:PiT",
        tables="pit",
        variants={f"pit_{size}_224": _pit(size) for size in _SIZES},
    ),
    "pit_distilled": Family(
        small=_SMALL,
        title="PiT distilled",
        paper="2103.16302",
        model="pit:DistilledPiT",
        tables="pit",
        variants={f"pit_{size}_distilled_224": _pit(size, distilled=True) for size in _SIZES},
    ),
}

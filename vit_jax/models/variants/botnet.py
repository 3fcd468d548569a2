"""BoTNet (Srinivas et al. 2021, arXiv:2101.11605) in timm's sizes; the paper's are in no library.

Top-1: timm's table of results; `botnet50ts_256` was never trained.
"""

from vit_jax.models.variants import Family, Variant, timm_preprocess

_CONV, _ATTENTION = "conv", "attention"
_MIXED = (_CONV, _ATTENTION)
_STAGES = {
    "26t": ((_CONV,) * 2, (_CONV,) * 2, _MIXED, (_ATTENTION,) * 2),
    "50ts": ((_CONV,) * 3, (*(_CONV,) * 3, _ATTENTION), _MIXED * 3, (*_MIXED, _CONV)),
}


def _botnet(size: str, activation: str, top1: float | None) -> Variant:
    config = {
        "hidden_sizes": (256, 512, 1024, 2048),
        "stages": _STAGES[size],
        "activation": activation,
    }
    return Variant(config, timm_preprocess(256, 0.95), top1)


FAMILIES = {
    "botnet": Family(
        small={
            "hidden_sizes": (16, 32, 64, 128),
            "stages": (("conv",), ("conv",), ("conv", "attention"), ("attention",)),
        },
        title="BoTNet",
        paper="2101.11605",
        model="botnet:BoTNet",
        tables="botnet",
        variants={
            "botnet26t_256": _botnet("26t", "relu", 79.26),
            "botnet50ts_256": _botnet("50ts", "silu", None),
        },
    )
}

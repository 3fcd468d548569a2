"""Vision Transformers whose patches are averaged (He et al. 2022, arXiv:2111.06377, appendix A.1).

timm builds one of any ViT by `global_pool='avg'`, with GELU in its erf form. Sizes: Dosovitskiy et
al. 2021 (arXiv:2010.11929, Table 1) and Touvron et al. 2021 (arXiv:2012.12877, Table 1).

The encoders of I-JEPA (Assran et al. 2023, arXiv:2301.08243) have no class token; their positions
are fixed sines and cosines, stored like learned ones.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.families.deit import deit, sizes, timm_args
from vit_jax.families.family import (
    Architecture,
    Config,
    Family,
    Layout,
    Pairs,
    Start,
    Timm,
    Weights,
)
from vit_jax.families.parts import (
    ERF,
    NORM,
    SMALL,
    always,
    architecture,
    encoder_points,
    imagenet,
    mlp_ratio,
    positions,
)
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import Table, under

_SIZES = {
    "tiny_patch16": ("tiny", 16),
    "small_patch16": ("small", 16),
    "base_patch16": ("base", 16),
    "large_patch16": ("large", 16),
    "huge_patch14": ("huge", 14),
}


def _architectures() -> dict[str, Architecture]:
    """With the mean normalised, as timm does unless it is told otherwise; then with the tokens."""
    found = {}
    for end, norm_mean in (("", True), ("_prenorm", False)):
        for name, (size, patch) in _SIZES.items():
            config = {**sizes(size, patch), "norm_mean": norm_mean}
            known = architecture(config, imagenet(224))
            found[f"vit_{name}_avg{end}_224"] = Architecture(
                known.config, known.weights, timm_name=f"vit_{name}_224"
            )
    return found


_I_JEPA = "https://dl.fbaipublicfiles.com/ijepa"
# The widest, with as many blocks and such a width of the MLP as timm builds it.
_GIANT = {"hidden_size": 1408, "num_layers": 40, "num_heads": 16, "mlp_dim": 6144}


def _i_jepa(config: Mapping[str, Any], preprocess: Preprocess, **files: str) -> Architecture:
    """`files`: the official ones by timm's tag; the names in them are timm's."""
    weights = {
        tag: Weights(preprocess, 0, source=f"{_I_JEPA}/{file}", licence="CC-BY-NC-4.0")
        for tag, file in files.items()
    }
    return Architecture({**config, "norm_mean": False, "class_token": False}, weights)


def _without_class_token() -> dict[str, Architecture]:
    return {
        "vit_huge_patch14_gap_224": _i_jepa(
            sizes("huge", 14),
            imagenet(224),
            in1k_ijepa="IN1K-vit.h.14-300e.pth.tar",
            in22k_ijepa="IN22K-vit.h.14-900e.pth.tar",
        ),
        "vit_huge_patch16_gap_448": _i_jepa(
            sizes("huge", 16),
            imagenet(448, 1.0),
            in1k_ijepa="IN1K-vit.h.16-448px-300e.pth.tar",
        ),
        "vit_giant_patch16_gap_224": _i_jepa(
            {"patch_size": 16, **_GIANT},
            imagenet(224),
            in22k_ijepa="IN22K-vit.g.16-600e.pth.tar",
        ),
    }


def _has_class_token(config: Config) -> bool:
    return config.get("class_token", True)


def _timm(config: Config) -> Table:
    rows = deit(config)
    if not _has_class_token(config):
        rows = [r for r in rows if r.theirs != "cls_token"]
    if not config["norm_mean"]:
        return rows
    return [r for r in rows if not r.theirs.startswith("norm.")] + under("fc_norm", "fc_norm", NORM)


def _timm_args(config: Config) -> dict[str, Any]:
    args = timm_args(config) | {"global_pool": "avg", "fc_norm": config["norm_mean"]}
    args["mlp_ratio"] = mlp_ratio(config["mlp_dim"], config["hidden_size"])
    return args if _has_class_token(config) else args | {"class_token": False}


def _is_built(config: Config, args: Mapping[str, Any]) -> bool:
    normed = args.get("fc_norm")
    return (
        args.get("global_pool") == "avg"
        and args.get("class_token", True) == _has_class_token(config)
        and (normed is None or normed) == config["norm_mean"]
    )


def _starts_from(config: Config) -> dict[str, Start]:
    """An encoder with a class token: the norm of its tokens stays behind that of their mean."""
    if not _has_class_token(config):
        return {}
    norms = Start(left=("Transformer/encoder_norm/.*",), fresh=("fc_norm/.*",))
    return {"deit": norms if config.get("norm_mean", True) else Start()}


def _points(config: Config) -> Pairs:
    found = encoder_points(norm=None if config["norm_mean"] else "norm")(config)
    return [*found, ("fc_norm", "fc_norm")] if config["norm_mean"] else found


FAMILIES = {
    "vit_avg": Family(
        title="ViT, averaged",
        paper="2111.06377",
        model="vit_avg:AveragingViT",
        computes=f"the mean over patches in the place of the class token, {ERF}",
        architectures={**_architectures(), **_without_class_token()},
        layouts={
            "timm": Layout(
                _timm, points=_points, build=Timm(_timm_args, always=True, builds=_is_built)
            )
        },
        small=always(SMALL),
        starts_from=_starts_from,
        **positions(prefix=lambda config: int(_has_class_token(config))),
    ),
}

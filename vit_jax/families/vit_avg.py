"""Vision Transformers whose patches are averaged (He et al. 2022, arXiv:2111.06377, appendix A.1).

timm builds one of any ViT by `global_pool='avg'`, with GELU in its erf form. Sizes: Dosovitskiy et
al. 2021 (arXiv:2010.11929, Table 1) and Touvron et al. 2021 (arXiv:2012.12877, Table 1).
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.families.deit import deit, sizes, timm_args
from vit_jax.families.family import Architecture, Config, Family, Layout, Pairs, Timm
from vit_jax.families.parts import (
    ERF,
    NORM,
    SMALL,
    always,
    architecture,
    encoder_points,
    imagenet,
    positions,
)
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


def _timm(config: Config) -> Table:
    rows = deit(config)
    if not config["norm_mean"]:
        return rows
    return [r for r in rows if not r.theirs.startswith("norm.")] + under("fc_norm", "fc_norm", NORM)


def _timm_args(config: Config) -> dict[str, Any]:
    return timm_args(config) | {"global_pool": "avg", "fc_norm": config["norm_mean"]}


def _is_built(config: Config, args: Mapping[str, Any]) -> bool:
    normed = args.get("fc_norm")
    return (
        args.get("global_pool") == "avg"
        and args.get("class_token", True)
        and (normed is None or normed) == config["norm_mean"]
    )


def _points(config: Config) -> Pairs:
    found = encoder_points(norm=None if config["norm_mean"] else "norm")(config)
    return [*found, ("fc_norm", "fc_norm")] if config["norm_mean"] else found


FAMILIES = {
    "vit_avg": Family(
        title="ViT, averaged",
        paper="2111.06377",
        model="vit_avg:AveragingViT",
        computes=f"the mean over patches in the place of the class token, {ERF}",
        architectures=_architectures(),
        layouts={
            "timm": Layout(
                _timm, points=_points, build=Timm(_timm_args, always=True, builds=_is_built)
            )
        },
        small=always(SMALL),
        **positions(prefix=1),
    ),
}

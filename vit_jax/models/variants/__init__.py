"""The survey's families as data: what is registered of each, and where its parts stand. No JAX.

A module here holds `FAMILIES`, one entry a family, and cites the paper's tables for the sizes.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Literal

from vit_jax.families.preprocess import Preprocess

# Modules beside this one.
MODULES = (
    "deit",
    "cait",
    "cct",
    "lvvit",
    "simple_vit",
    "levit",
    "pit",
    "tnt",
    "crossvit",
    "botnet",
    "swin",
    "pvt",
    "pvt_v2",
    "twins",
    "cvt",
)

# `Family.small` of models whose tokens keep one resolution, and of pyramids.
SMALL = {"hidden_size": 32, "transformer": {"num_layers": 2, "num_heads": 2, "mlp_dim": 32}}
SMALL_STAGES = {
    "depths": (2, 1, 1, 1),
    "embed_dims": (16, 32, 64, 128),
    "num_heads": (1, 2, 4, 8),
}

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclasses.dataclass(frozen=True)
class Variant:
    """One registered name.

    Attributes:
      config: Constructor fields of the family's class; `num_classes` is not among them.
      preprocess: How it wants its images.
      top1: Published accuracy on ImageNet-1k in percent, at that image size; None if there is none.
      num_classes: Of the published head.
    """

    config: Mapping[str, Any]
    preprocess: Preprocess
    top1: float | None = None
    num_classes: int = 1000


@dataclasses.dataclass(frozen=True)
class Family:
    """Models of one class.

    Attributes:
      title: As the field calls it.
      paper: arXiv number.
      model: Module below `vit_jax.models`, and the linen class in it: 'deit:DeiT'.
      tables: Module below `vit_jax.checkpoint.tables` that holds its names elsewhere.
      reference: What it is proven against, and the layout that means it: 'timm', 'hf', …
      variants: By name.
      small: Fields that make any variant tiny, entries of mappings: for runs that prove nothing but
        that they run.
    """

    title: str
    paper: str
    model: str
    tables: str
    variants: Mapping[str, Variant]
    small: Mapping[str, Any]
    reference: str = "timm"


def timm_preprocess(
    size: int,
    crop: float = 0.9,
    *,
    mean: tuple[float, float, float] = _MEAN,
    std: tuple[float, float, float] = _STD,
    method: Literal["bilinear", "bicubic"] = "bicubic",
    resize: Literal["squash", "shortest"] = "shortest",
) -> Preprocess:
    """timm's way: the shorter side resized with antialiasing, a central crop."""
    return Preprocess(size, crop, resize, method, antialias=True, mean=mean, std=std)


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a family's tiny model, which takes images of 64 pixels."""
    small = dict(config)
    for field, value in families()[config["family"]].small.items():
        nested = isinstance(value, Mapping)
        small[field] = {**small[field], **value} if nested else value
    return small


def families() -> dict[str, Family]:
    """Every family of the survey by name; ValueError where two modules claim one name."""
    found: dict[str, Family] = {}
    for module in MODULES:
        new = importlib.import_module(f"{__name__}.{module}").FAMILIES
        if twice := found.keys() & new.keys():
            raise ValueError(f"family {sorted(twice)} is registered twice")
        found |= new
    return found

"""What a converter must know of a model, however the caller names it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint.shapes import Shape
from vit_jax.errors import UserError
from vit_jax.families.registry import GOOGLE, ModelSpec, family_of, family_of_class, resolve

_MODULE_FIELDS = ("parent", "name", "num_classes")  # of a linen module, and no part of a config


def config_of(model: Any) -> Mapping[str, Any]:
    """Constructor fields of a registered name, a ModelSpec, a config, or a linen module.

    Raises UserError for an unknown name or for fields of no known family.
    """
    if isinstance(model, str):
        model = resolve(model)
    if isinstance(model, ModelSpec):
        return model.config.to_dict()
    if isinstance(model, Mapping):
        config = model
    elif dataclasses.is_dataclass(model):
        config = {f.name: getattr(model, f.name, None) for f in dataclasses.fields(model)}
        if (family := family_of_class(type(model))) not in GOOGLE:
            config = {k: v for k, v in config.items() if k not in _MODULE_FIELDS}
            config["family"] = family
    elif hasattr(model, "to_dict"):  # an ml_collections.ConfigDict
        config = model.to_dict()
    else:
        raise UserError(f"expected a model name, a config or a linen module; got {type(model)}")
    family_of(config)
    return config


def has_class_token(config: Mapping[str, Any]) -> bool:
    return config.get("classifier") in ("token", "token_unpooled")


def is_scanned(config: Mapping[str, Any]) -> bool:
    """Whether the model holds its blocks stacked."""
    return bool((config.get("transformer") or config).get("scan", False))


def num_heads(config: Mapping[str, Any]) -> dict[str, int]:
    """The axis size that shapes leave open, as the rules engine wants it; {} for a Mixer."""
    transformer = config.get("transformer")
    return {} if transformer is None else {"heads": transformer["num_heads"]}


def num_patches(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> int:
    """Patches of an image, by the shapes of unstacked parameters (linen names)."""
    if family_of(config) == "mixer":
        return shapes["MixerBlock_0/token_mixing/Dense_0/kernel"][0]
    if config.get("transformer") is None:
        return 0
    tokens = shapes["Transformer/posembed_input/pos_embedding"][1]
    return tokens - has_class_token(config)


def width(config: Mapping[str, Any]) -> int:
    """Size of a token."""
    return config["hidden_dim"] if family_of(config) == "mixer" else config["hidden_size"]


def num_classes(shapes: Mapping[str, Shape]) -> int:
    """Of the heads; 0 without one."""
    kernels = (s[-1] for n, s in shapes.items() if n.startswith("head") and n.endswith("/kernel"))
    return next(kernels, 0)


def shapes_of(params: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: np.shape(x) for name, x in params.items()}


def downsampling(config: Mapping[str, Any]) -> int:
    """Pixels a patch: the ResNet's root halves twice, each stage after the first once more."""
    resnet = config.get("resnet")
    stages = len(resnet["num_layers"]) if resnet is not None else 0
    return config["patches"]["size"][0] * (2 ** (max(stages, 1) + 1) if resnet is not None else 1)

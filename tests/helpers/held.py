"""Random weights that every library can hold: none of a model's tensors is left out on the way."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import from_torch, names, to_torch
from vit_jax.families.registry import get
from vit_jax.parity.subject import random_params
from vit_jax.tree import arrays
from vit_jax.variables import collections, named


def held_params(
    config: Mapping[str, Any], num_classes: int, image_size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Random weights; where timm drops or folds some of them, those that it gives back."""
    sizes = {"num_classes": num_classes, "image_size": image_size}
    flat = random_params(names.expected_shapes(config, **sizes), seed=0)
    timm = get(config).layouts.get("timm")
    # A head that timm does not have keeps its model away from timm.
    if timm is None or timm.after_reading is None or "head_reads" in config:
        return flat
    there = to_torch(collections(flat, names.statistics(config)), config, "timm")
    return arrays(named(from_torch(there, config, "timm")))

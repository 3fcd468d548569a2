"""Random weights that let a small mistake anywhere be seen."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from zoo_dinov2 import DINOv2Case

from vit_jax.checkpoint import names
from vit_jax.variables import collections


def strong_params(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Every parameter random, with branches as large as what they are added to.

    Kernels keep the variance of what they are applied to; norms are 1 + 0.2 N(0, 1), scales of
    branches 0.5 + 0.2 N, biases 0.2 N, and tokens and positions 0.5 N.
    """
    rng, params = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        shape, x = shapes[name], rng.standard_normal(shapes[name])
        leaf = name.rsplit("/", 1)[-1]
        if leaf == "kernel":
            into_heads = name.endswith(("query/kernel", "key/kernel", "value/kernel"))
            x /= math.sqrt(shape[0] if into_heads else math.prod(shape[:-1]))
        elif leaf == "scale":
            x = 1 + 0.2 * x
        elif leaf == "gamma":
            x = 0.5 + 0.2 * x
        else:
            x *= 0.2 if leaf == "bias" else 0.5
        params[name] = x.astype(np.float32)
    return params


class StrongCase(DINOv2Case):
    """A model and its reference on strong weights."""

    def __init__(self, *args: Any, **fields: Any):
        super().__init__(*args, **fields)
        strong = strong_params(names.shapes_of(self.flat))
        self.flat = {n: strong[n] if x.any() else x for n, x in self.flat.items()}
        self.variables = collections(self.flat, names.statistics(self.config))

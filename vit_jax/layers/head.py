"""The linear classifier, and what a model without one returns."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.init import normal_02
from vit_jax.layers.precision import widened


def classify(
    x: jax.Array,
    num_classes: int,
    *,
    kernel_init: Callable[..., jax.Array] = normal_02,
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros,
    dtype: Any = None,
    name: str = "head",
) -> jax.Array:
    """Features [N, …, D] to logits [N, …, num_classes], float32 or wider; 0 classes: the features.

    To be called in a compact method: it adds a layer called `name`.
    """
    if num_classes:
        x = nn.Dense(
            num_classes, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, name=name
        )(x)
    return widened(x)

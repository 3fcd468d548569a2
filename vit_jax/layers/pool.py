"""Tokens to one vector."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.init import normal_02
from vit_jax.layers.precision import widened


def sequence_pool(x: jax.Array, *, dtype: Any = None, name: str = "attention_pool") -> jax.Array:
    """Mean over tokens with learned weights: [N, T, D] -> [N, D].

    A linear layer scores each token, a softmax over the tokens in float32 or wider makes weights of
    the scores (Hassani et al. 2021, arXiv:2104.05704, equations 1 to 3). To be called in a compact
    method: it adds a layer called `name`.
    """
    scores = nn.Dense(1, kernel_init=normal_02, dtype=dtype, name=name)(x)
    scores = widened(scores)
    weights = jax.nn.softmax(scores, axis=1).astype(x.dtype)
    return jnp.einsum("ntp,ntd->nd", weights, x)

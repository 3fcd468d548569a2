"""The tokens of a map, and learned ones before them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.init import normal_02
from vit_jax.layers.patch import PatchSize, embed_patches


def map_tokens(x: jax.Array) -> jax.Array:
    """[N, H, W, D] -> [N, H * W, D], row by row."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def patch_tokens(
    images: jax.Array,
    features: int,
    size: PatchSize,
    *,
    dtype: Any,
    name: str = "embedding",
) -> jax.Array:
    """A token for each patch, row by row: [N, H, W, C] -> [N, T, features].

    To be called in a compact method; arguments and errors are those of `embed_patches`.
    """
    return map_tokens(embed_patches(images, features, size, dtype=dtype, name=name))


def prepend_tokens(
    module: nn.Module,
    x: jax.Array,
    *names: str,
    init: Callable[..., jax.Array] = normal_02,
) -> jax.Array:
    """[N, T, D] -> [N, len(names) + T, D]: one token a name, in that order, before the others.

    To be called in a compact method: `module` gets a parameter [1, 1, D] for each name.
    """
    tokens = [module.param(name, init, (1, 1, x.shape[-1])) for name in names]
    shape = (x.shape[0], 1, x.shape[-1])
    return jnp.concatenate([*(jnp.broadcast_to(t.astype(x.dtype), shape) for t in tokens), x], 1)

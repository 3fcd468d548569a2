"""Position embeddings."""

from collections.abc import Callable

import jax
from flax import linen as nn

from vit_jax.layers.init import normal_02


class AddPositionEmbs(nn.Module):
    """Adds a learned `pos_embedding` [1, …, D] to tokens [N, T, D] or a map [N, H, W, D]."""

    init: Callable[..., jax.Array] = normal_02

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, *x.shape[1:])
        table = self.param("pos_embedding", self.init, shape)
        # The table follows the tokens' type: float32 parameters must not widen bfloat16 tokens.
        return x + table.astype(x.dtype)

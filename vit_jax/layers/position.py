"""Position embeddings."""

from collections.abc import Callable

import jax
from flax import linen as nn

from vit_jax.layers.init import normal_02


class AddPositionEmbs(nn.Module):
    """Adds a table `pos_embedding` [1, …, D] to tokens [N, T, D] or a map [N, H, W, D].

    Attributes:
      frozen: Whether the table stays as it is initialised or loaded: no gradient changes it.
    """

    init: Callable[..., jax.Array] = normal_02
    frozen: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, *x.shape[1:])
        table = self.param("pos_embedding", self.init, shape)
        if self.frozen:
            table = jax.lax.stop_gradient(table)
        # The table follows the tokens' type: float32 parameters must not widen bfloat16 tokens.
        return x + table.astype(x.dtype)

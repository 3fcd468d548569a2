"""What a model of images of different sizes in one batch needs: positions and a mask."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# The weight that a softmax in float32 or wider gives to such a score is exactly 0.
_NEVER = -1e10


class AddResizedPositions(nn.Module):
    """Adds a table `pos_embedding` [side, side, D] to tokens [N, T, D], resized to each image."""

    side: int

    @nn.compact
    def __call__(self, x: jax.Array, grid: jax.Array) -> jax.Array:
        """`grid`: rows and columns of patches, integers [N, 2], or [1, 2] for all images."""
        near = nn.initializers.normal(stddev=x.shape[-1] ** -0.5)
        table = self.param("pos_embedding", near, (self.side, self.side, x.shape[-1]))
        return x + resized_positions(table, grid, x.shape[1]).astype(x.dtype)


def resized_positions(table: jax.Array, grid: jax.Array, length: int) -> jax.Array:
    """Positions [N, length, D] of the patches of images, from one table [R, C, D].

    The table is resized to each image's rows and columns bilinearly, with antialiasing and
    half-pixel centres (SigLIP 2, arXiv:2502.14786, section 2.4.2); as weights of the table's rows
    and columns, so that sizes may be traced. What fills an image up gets some position of it.

    Args:
      grid: Rows and columns of patches of each image, integers [N, 2]. What fills a batch up has 0
        of them, and gets some position too: no number may be lost in a batch.
    """
    grid = jnp.maximum(grid, 1)
    dtype = jnp.promote_types(table.dtype, jnp.float32)
    rows, columns = grid[:, :1], grid[:, 1:]
    place = jnp.arange(length, dtype=grid.dtype)[None]
    row, column = jnp.minimum(place // columns, rows - 1), place % columns
    of_rows = _weights(row, rows, table.shape[0], dtype)
    of_columns = _weights(column, columns, table.shape[1], dtype)
    weights = of_rows[..., :, None] * of_columns[..., None, :]
    return jnp.einsum("nsrc,rcd->nsd", weights, table.astype(dtype), precision="highest")


def _weights(place: jax.Array, count: jax.Array, size: int, dtype: Any) -> jax.Array:
    """What each of `size` entries gives to places [N, S] of `count` [N, 1] ones: [N, S, size]."""
    scale = size / count.astype(dtype)
    centre = (place.astype(dtype) + 0.5) * scale - 0.5
    distance = jnp.abs(jnp.arange(size, dtype=dtype)[None, None] - centre[..., None])
    weights = jnp.maximum(1 - distance / jnp.maximum(scale, 1)[..., None], 0)
    return weights / weights.sum(axis=-1, keepdims=True)


def key_bias(valid: jax.Array) -> jax.Array:
    """Booleans [N, T] as what is added to scores [N, heads, Q, T], so that none asks the others."""
    return jnp.where(valid, 0.0, _NEVER)[:, None, None, :]

"""Attention within windows of a map."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.relative import Size, padded_size


def partition(x: jax.Array, window: Size) -> jax.Array:
    """[N, H, W, C] -> [N, windows, height * width, C], both row by row; see `merge`."""
    n, rows, columns, c = x.shape
    height, width = window
    x = x.reshape(n, rows // height, height, columns // width, width, c)
    return x.swapaxes(2, 3).reshape(n, -1, height * width, c)


def merge(windows: jax.Array, window: Size, size: Size) -> jax.Array:
    """What `partition` cut: -> [N, *size, C]."""
    n, c = windows.shape[0], windows.shape[-1]
    (height, width), (rows, columns) = window, size
    x = windows.reshape(n, rows // height, columns // width, height, width, c)
    return x.swapaxes(2, 3).reshape(n, rows, columns, c)


class WindowAttention(MultiHeadDotProductAttention):
    """Every window of a map attends to itself: [N, H, W, D] -> [N, H, W, D].

    Where windows do not divide the map, zeros are added below and to the right of it. They are
    attended to like the others, as in timm.

    Attributes: as in `MultiHeadDotProductAttention`; and
      window: Height and width.
    """

    window: Size = (7, 7)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, **fields: Any) -> jax.Array:
        """`fields`: `bias`, broadcasting to [N, windows, heads, T, T], T tokens a window."""
        size = (x.shape[1], x.shape[2])
        padded = padded_size(size, self.window)
        below, right = padded[0] - size[0], padded[1] - size[1]
        windows = partition(jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0))), self.window)
        windows = super().__call__(windows, train=train, **fields)
        return merge(windows, self.window, padded)[:, : size[0], : size[1]]

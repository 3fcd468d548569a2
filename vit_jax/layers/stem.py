"""Convolutions between the image and its patches."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.conv import conv_norm


class ConvStem(nn.Module):
    """Convolutions, normalised and with ReLU; the first, of 7 × 7, halves the sides.

    [N, H, W, 3] -> [N, ⌈H / 2⌉, ⌈W / 2⌉, C].

    Attributes:
      features: Channels of each; C is the last.
    """

    features: Sequence[int]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, features in enumerate(self.features):
            kernel, stride = (3, 1) if i else (7, 2)
            x = conv_norm(
                features,
                kernel,
                stride=stride,
                activation=nn.relu,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x, train=train)
        return x

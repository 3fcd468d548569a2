"""Positions that a map tells by itself."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.conv import conv
from vit_jax.layers.init import torch_default


class PositionEncodingGenerator(nn.Module):
    """Adds a 3 × 3 depthwise convolution of the map to it: [N, H, W, D] -> [N, H, W, D].

    The zeros around the map say where its borders are. Chu et al. 2021 (CPVT, arXiv:2102.10882),
    section 3.
    """

    kernel_init: Callable[..., jax.Array] = torch_default
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        init = self.kernel_init
        return x + conv(width, 3, groups=width, kernel_init=init, dtype=self.dtype, name="conv")(x)

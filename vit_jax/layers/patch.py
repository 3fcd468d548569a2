"""Images to patches."""

from typing import Any

import jax
from flax import linen as nn

from vit_jax.errors import UserError


def embed_patches(
    x: jax.Array, features: int, size: tuple[int, int], *, dtype: Any, name: str
) -> jax.Array:
    """Non-overlapping patches of `size` (height, width), projected to `features`.

    To be called in a compact method: it adds a convolution called `name`. [N, H, W, C] ->
    [N, H // size[0], W // size[1], features]; rows and columns beyond the last whole patch are
    not looked at, as in the original.

    Raises:
      UserError: when the image is smaller than one patch.
    """
    patch = (int(size[0]), int(size[1]))
    if x.shape[1] < patch[0] or x.shape[2] < patch[1]:
        raise UserError(
            f"an input of {x.shape[1]}×{x.shape[2]} (height × width) is smaller than one patch of "
            f"{patch[0]}×{patch[1]}"
        )
    return nn.Conv(features, patch, strides=patch, padding="VALID", dtype=dtype, name=name)(x)

"""Images to patches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.layers.attention.choice import on_cpu
from vit_jax.layers.conv import conv
from vit_jax.layers.init import torch_default
from vit_jax.layers.norm import LayerNorm5

PatchSize = int | tuple[int, int]  # the side of a square, or (height, width)
_lecun_normal = nn.initializers.lecun_normal()  # Flax's default


def sides(size: PatchSize) -> tuple[int, int]:
    """(height, width) of a patch."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def embed_patches(
    x: jax.Array,
    features: int,
    size: PatchSize,
    *,
    stride: int | None = None,
    use_bias: bool = True,
    kernel_init: Callable[..., jax.Array] = _lecun_normal,
    dtype: Any,
    name: str,
) -> jax.Array:
    """Patches of `size`, projected to `features`.

    To be called in a compact method: it adds a convolution called `name`. [N, H, W, C] ->
    [N, H // height, W // width, features]; rows and columns beyond the last whole patch are
    not looked at, as in the original.

    Args:
      stride: From a patch to the next, where they overlap: (H - height) // stride + 1 rows.

    Raises:
      UserError: when the image is smaller than one patch.
    """
    patch = _checked(x, size)
    strides = patch if stride is None else (stride, stride)
    # XLA's CPU convolutions lose to its matrix product. Elsewhere they are at least as fast.
    how = _product if on_cpu() and strides == patch else None
    return nn.Conv(
        features,
        patch,
        strides=strides,
        padding="VALID",
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        conv_general_dilated=how,
        name=name,
    )(x)


def _product(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """The convolution of patches side by side: [N, H, W, C] and [h, w, C, D] to [N, H', W', D]."""
    del args, kwargs
    height, width = kernel.shape[:2]
    patches = split_patches(x, (height, width))
    patches = patches.reshape(*patches.shape[:3], -1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def split_patches(x: jax.Array, size: PatchSize) -> jax.Array:
    """[N, H, W, C] -> [N, H // height, W // width, height, width, C]: patches, row by row.

    Raises:
      UserError: when the image is smaller than one patch.
    """
    height, width = _checked(x, size)
    rows, columns = x.shape[1] // height, x.shape[2] // width
    x = x[:, : rows * height, : columns * width]
    return x.reshape(-1, rows, height, columns, width, x.shape[-1]).swapaxes(2, 3)


def overlapping_patches(x: jax.Array, kernel: int, stride: int, padding: int) -> jax.Array:
    """[N, H, W, C] -> [N, H', W', kernel, kernel, C]: patches with zeros beyond the border.

    H' = (H + 2 padding - kernel) // stride + 1. Numbers are moved and never multiplied, so that
    they stay what they are on devices whose convolutions round.
    """
    for axis in (1, 3):  # what was rows and columns: each becomes the places of patches and in them
        pad = [(0, 0)] * x.ndim
        pad[axis] = (padding, padding)
        x = jnp.pad(x, pad)
        span = x.shape[axis] - kernel  # from the first place of a patch to the last one
        places = [
            jax.lax.slice_in_dim(x, i, i + span + 1, stride, axis=axis) for i in range(kernel)
        ]
        x = jnp.stack(places, axis=axis + 1)
    return x.swapaxes(2, 3)


class PatchEmbedding(nn.Module):
    """Patches that may overlap, projected and normalised, as the hierarchical models have them.

    [N, H, W, C] -> [N, H', W', features], H' = (H + 2 padding - kernel) // stride + 1.

    Attributes:
      kernel, stride, padding: In cells of the map, the same in both directions. By default patches
        lie side by side.

    Raises:
      UserError: when the map is smaller than one patch.
    """

    features: int
    kernel: int
    stride: int | None = None
    padding: int = 0
    kernel_init: Callable[..., jax.Array] = torch_default
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        if min(height, width) + 2 * self.padding < self.kernel:
            raise UserError(
                f"a map of {height}×{width} (height × width) is smaller than one patch of "
                f"{self.kernel}×{self.kernel}: take larger images"
            )
        x = conv(
            self.features,
            self.kernel,
            stride=self.stride or self.kernel,
            padding=self.padding,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        return LayerNorm5(dtype=self.dtype, name="norm")(x)


def _checked(x: jax.Array, size: PatchSize) -> tuple[int, int]:
    patch = sides(size)
    if x.shape[1] < patch[0] or x.shape[2] < patch[1]:
        raise UserError(
            f"an input of {x.shape[1]}×{x.shape[2]} (height × width) is smaller than one patch of "
            f"{patch[0]}×{patch[1]}"
        )
    return patch

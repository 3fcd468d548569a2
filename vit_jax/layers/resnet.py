"""The ResNet before the tokens of a hybrid, with weight-standardised convolutions.

Kolesnikov et al. 2020 (BiT, arXiv:1912.11370): group normalisation and weight standardisation
(Qiao et al. 2019, arXiv:1903.10520) in place of batch normalisation.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from vit_jax.layers.norm import GroupNorm


def weight_standardize(w: jax.Array, eps: float = 1e-5) -> jax.Array:
    """(w - mean) / (std + eps) over all axes but the last, the output channels.

    The epsilon is added to the standard deviation, not to the variance as elsewhere (timm).
    """
    axes = tuple(range(w.ndim - 1))
    w = w - w.mean(axis=axes, keepdims=True)
    return w / (w.std(axis=axes, keepdims=True) + jnp.asarray(eps, w.dtype))


class StdConv(nn.Module):
    """A convolution that standardises its kernel, in the parameters' type, before each use.

    [N, H, W, C] -> [N, ⌈H / stride⌉, ⌈W / stride⌉, features], without a bias. It is no `nn.Conv`,
    which exporters replace by a convolution with the kernel as it is stored.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        x, kernel = promote_dtype(x, weight_standardize(kernel), dtype=self.dtype)
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, self.strides, "SAME", dimension_numbers=axes)


class ResidualUnit(nn.Module):
    """Bottleneck: 1×1, 3×3 (with the stride), 1×1 to four times `features`.

    [N, H, W, C] -> [N, ⌈H / stride⌉, ⌈W / stride⌉, 4 · features].
    """

    features: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(features: int, kernel: int, stride: int, name: str) -> StdConv:
            size, strides = (kernel, kernel), (stride, stride)
            return StdConv(features, size, strides, dtype=self.dtype, name=name)

        def norm(name: str, **kwargs):
            return GroupNorm(dtype=self.dtype, name=name, **kwargs)

        shortcut = x
        if x.shape[-1] != 4 * self.features or self.stride != 1:
            shortcut = conv(4 * self.features, 1, self.stride, "conv_proj")(x)
            shortcut = norm("gn_proj")(shortcut)
        y = nn.relu(norm("gn1")(conv(self.features, 1, 1, "conv1")(x)))
        y = nn.relu(norm("gn2")(conv(self.features, 3, self.stride, "conv2")(y)))
        y = conv(4 * self.features, 1, 1, "conv3")(y)
        # A unit starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        y = norm("gn3", scale_init=nn.initializers.zeros)(y)
        return nn.relu(shortcut + y)


class ResNetStage(nn.Module):
    """`num_units` residual units, the first with the stride."""

    num_units: int
    features: int
    first_stride: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_units):
            stride = self.first_stride if i == 0 else 1
            x = ResidualUnit(self.features, stride, dtype=self.dtype, name=f"unit{i + 1}")(x)
        return x

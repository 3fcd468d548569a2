"""The residual units of ResNets with batch normalisation, padded as PyTorch pads."""

import functools
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.block import Factory
from vit_jax.layers.conv import conv_norm
from vit_jax.layers.drop import DropPath

BOTTLENECK = 4  # a unit's channels are so many times those inside


class Unit(nn.Module):
    """A bottleneck of ResNet: [N, H, W, D] -> [N, H / stride, W / stride, features].

    Attributes:
      mix: Makes what stands in the middle, called as `factory(features, stride, name=…)`.
      squeeze: Whether the branch is excited channel by channel before it is added, as in
        `SqueezeExcite`.
      shortcut_activation: Whether the shortcut's own convolution has an activation behind it.
    """

    features: int
    stride: int
    mix: Factory
    activation: Any
    squeeze: bool = False
    shortcut_activation: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, drop_path_rate: float, *, train: bool) -> jax.Array:
        layer = functools.partial(conv_norm, dtype=self.dtype)
        inside = self.features // BOTTLENECK
        y = layer(inside, 1, activation=self.activation, name="reduce")(x, train=train)
        y = self.mix(inside, self.stride, name="mix")(y, train=train)
        # A unit starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        zeros = nn.initializers.zeros
        y = layer(self.features, 1, scale_init=zeros, name="expand")(y, train=train)
        if self.squeeze:
            y = SqueezeExcite(inside // BOTTLENECK, dtype=self.dtype, name="squeeze")(y)
        y = DropPath(name="residual")(y, drop_path_rate, train=train)
        if self.stride > 1 or x.shape[-1] != self.features:
            activation = self.activation if self.shortcut_activation else None
            shortcut = layer(self.features, 1, self.stride, activation=activation, name="shortcut")
            x = shortcut(x, train=train)
        return self.activation(x + y)


class BasicUnit(nn.Module):
    """Two convolutions of 3×3: [N, H, W, D] -> [N, H / stride, W / stride, features].

    He et al. 2016 (arXiv:1512.03385), figure 5 on the left.
    """

    features: int
    stride: int
    activation: Any
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, drop_path_rate: float, *, train: bool) -> jax.Array:
        layer = functools.partial(conv_norm, self.features, dtype=self.dtype)
        y = layer(3, self.stride, activation=self.activation, name="conv_0")(x, train=train)
        y = layer(3, scale_init=nn.initializers.zeros, name="conv_1")(y, train=train)
        y = DropPath(name="residual")(y, drop_path_rate, train=train)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = layer(1, self.stride, name="shortcut")(x, train=train)
        return self.activation(x + y)


class SqueezeExcite(nn.Module):
    """Every channel of a map times a number in (0, 1) that all channels' means decide.

    Hu et al. 2018 (arXiv:1709.01507), section 3. [N, H, W, D] -> the same shape.

    Attributes:
      hidden: Width of the layer between.
    """

    hidden: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.mean((1, 2), keepdims=True)
        y = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="Dense_0")(y))
        return x * nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype, name="Dense_1")(y))

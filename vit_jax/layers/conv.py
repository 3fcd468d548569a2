"""Convolutions padded as PyTorch pads them, and layers with batch normalisation behind them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vit_jax.layers.init import torch_default
from vit_jax.layers.norm import BatchNorm


def conv(
    features: int,
    kernel: int,
    *,
    name: str,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    use_bias: bool = True,
    dtype: Any = None,
    kernel_init: Callable[..., jax.Array] = torch_default,
) -> nn.Conv:
    """A square convolution of [N, H, W, C]; to be called in a compact method.

    It is padded by the same number of zeros on both sides, as in PyTorch.

    Args:
      padding: Zeros on each side; by default `kernel // 2`. Flax's 'SAME' puts fewer before than
        after where the stride is 2, which shifts the image against PyTorch's.
      groups: The number of channels for a depthwise convolution.
    """
    pad = kernel // 2 if padding is None else padding
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
    )


def max_pool(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, ⌈H / 2⌉, ⌈W / 2⌉, C]: the largest of 3×3, one beyond the border."""
    # A border made before can be exported to ONNX, and XLA makes it a part of the pooling again.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")


def average_pool(x: jax.Array, side: int) -> jax.Array:
    """[N, H, W, C] -> [N, H / side, W / side, C]: averages of squares of `side` cells.

    It is Flax's own, but for a divisor of the type of `x`, which strict promotion asks for.
    """
    window = (side, side)
    sums = nn.pooling.pool(x, 0.0, jax.lax.add, window, window, "VALID")
    return sums / jnp.asarray(side**2, sums.dtype)


class Normed(nn.Module):
    """A layer without bias, batch normalisation, activation; the norm is called `norm`.

    Attributes:
      layer: Called as `factory()(x)`; it names its module itself.
      activation: None for none.
      scale_init: Initialises the norm's scale; zeros let a residual branch start as nothing.
      mark: Name under which a rematerialised block keeps what the layer gives, see `./remat.py`:
        the norm's gradient needs that, not what the norm gives.
    """

    layer: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array] | None = None
    scale_init: Callable[..., jax.Array] = nn.initializers.ones
    mark: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.layer()(x)
        if self.mark is not None:
            x = checkpoint_name(x, self.mark)
        x = BatchNorm(
            use_running_average=not train, scale_init=self.scale_init, dtype=self.dtype, name="norm"
        )(x)
        return x if self.activation is None else self.activation(x)


def conv_norm(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    name: str,
    padding: int | None = None,
    groups: int = 1,
    dtype: Any = None,
    **fields: Any,
) -> Normed:
    """A convolution and its norm, `conv/kernel`, `norm/…`: [N, H, W, C] -> [N, H', W', features].

    Args:
      padding, groups: As in `conv`.
      **fields: Fields of `Normed`.
    """
    layer = functools.partial(
        conv,
        features,
        kernel,
        stride=stride,
        padding=padding,
        groups=groups,
        use_bias=False,
        dtype=dtype,
        name="conv",
    )
    return Normed(layer, dtype=dtype, name=name, **fields)


def dense_norm(features: int, *, name: str, dtype: Any = None, **fields: Any) -> Normed:
    """A linear layer and its norm, `dense/kernel` and `norm/…`: [N, …, C] -> [N, …, features].

    Args:
      **fields: Fields of `Normed`.
    """
    layer = functools.partial(
        nn.Dense, features, use_bias=False, kernel_init=torch_default, dtype=dtype, name="dense"
    )
    return Normed(layer, dtype=dtype, name=name, **fields)

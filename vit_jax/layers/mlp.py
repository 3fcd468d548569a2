"""The two-layer perceptron of a Transformer block, and the one that looks at neighbours."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vit_jax.layers.conv import conv
from vit_jax.layers.init import normal_02, torch_default


class MlpBlock(nn.Module):
    """Dense, activation, Dense, both followed by dropout: [N, …, D] -> [N, …, D].

    Attributes:
      mlp_dim: Width of the hidden layer.
      activation: The default is the tanh form of GELU, as in the original.
      kernel_init, bias_init: The defaults are the original's.
    """

    mlp_dim: int
    dropout_rate: float = 0.0
    activation: Callable[[jax.Array], jax.Array] = nn.gelu
    kernel_init: Callable[..., jax.Array] = nn.initializers.xavier_uniform()
    bias_init: Callable[..., jax.Array] = nn.initializers.normal(stddev=1e-6)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        init: dict[str, Any] = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        y = nn.Dense(self.mlp_dim, dtype=self.dtype, name="Dense_0", **init)(x)
        y = self.activation(checkpoint_name(y, "mlp"))
        y = nn.Dropout(self.dropout_rate, name="Dropout_0")(y, deterministic=not train)
        y = nn.Dense(x.shape[-1], dtype=self.dtype, name="Dense_1", **init)(y)
        return nn.Dropout(self.dropout_rate, name="Dropout_1")(y, deterministic=not train)


class ConvMlpBlock(nn.Module):
    """Dense, 3 × 3 depthwise convolution, GELU, Dense: a map [N, H, W, D] -> [N, H, W, D].

    Wang et al. 2022 (PVT v2, arXiv:2106.13797), section 3.

    Attributes:
      mlp_dim: Width of the hidden layer.
      before_conv: Activation of the first layer.
      kernel_init: Initialises the convolution.
    """

    mlp_dim: int
    before_conv: Callable[[jax.Array], jax.Array] | None = None
    kernel_init: Callable[..., jax.Array] = torch_default
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        dense: dict[str, Any] = {"kernel_init": normal_02, "dtype": self.dtype}
        y = checkpoint_name(nn.Dense(self.mlp_dim, name="Dense_0", **dense)(x), "mlp")
        if self.before_conv is not None:
            y = self.before_conv(y)
        y = conv(
            self.mlp_dim,
            3,
            groups=self.mlp_dim,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="depthwise",
        )(y)
        y = nn.gelu(y, approximate=False)
        return nn.Dense(x.shape[-1], name="Dense_1", **dense)(y)

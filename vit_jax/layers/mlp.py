"""The perceptrons of Transformer blocks: plain, gated, and one that looks at neighbours."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vit_jax.layers.conv import conv
from vit_jax.layers.init import normal_02, torch_default

exact_gelu = functools.partial(nn.gelu, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x σ(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2)."""
    return x * nn.sigmoid(1.702 * x)


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


class GatedMlp(nn.Module):
    """Dense of activation(gate(x)) · Dense(x), all with biases: [N, …, D] -> [N, …, D].

    Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202), equation 6.

    Attributes:
      mlp_dim: Width of the hidden layer, of the gate and of what it gates alike.
      dropout_rate: On the gated product and on the output.
      activation: Of the gate.
      norm: Called as `factory(name=…, dtype=…)(y)` with the gated product; None for no norm.
      kernel_init, bias_init: As in `MlpBlock`, with PyTorch's habits.
    """

    mlp_dim: int
    dropout_rate: float = 0.0
    activation: Callable[[jax.Array], jax.Array] = nn.silu
    norm: Callable[..., nn.Module] | None = None
    kernel_init: Callable[..., jax.Array] = normal_02
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        init: dict[str, Any] = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        gate = nn.Dense(self.mlp_dim, dtype=self.dtype, name="gate", **init)(x)
        y = nn.Dense(self.mlp_dim, dtype=self.dtype, name="Dense_0", **init)(x)
        y = self.activation(checkpoint_name(gate, "mlp")) * checkpoint_name(y, "mlp")
        if self.norm is not None:
            y = self.norm(dtype=self.dtype, name="LayerNorm_0")(y)
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
        y = exact_gelu(y)
        return nn.Dense(x.shape[-1], name="Dense_1", **dense)(y)

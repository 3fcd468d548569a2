"""The two-layer perceptron of a Transformer block."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn


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
        y = self.activation(y)
        y = nn.Dropout(self.dropout_rate, name="Dropout_0")(y, deterministic=not train)
        y = nn.Dense(x.shape[-1], dtype=self.dtype, name="Dense_1", **init)(y)
        return nn.Dropout(self.dropout_rate, name="Dropout_1")(y, deterministic=not train)

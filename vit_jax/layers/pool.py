"""Tokens to one vector."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import Factory
from vit_jax.layers.init import normal_02
from vit_jax.layers.mlp import MlpBlock
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.precision import widened


def sequence_pool(x: jax.Array, *, dtype: Any = None, name: str = "attention_pool") -> jax.Array:
    """Mean over tokens with learned weights: [N, T, D] -> [N, D].

    A linear layer scores each token, a softmax over the tokens in float32 or wider makes weights of
    the scores (Hassani et al. 2021, arXiv:2104.05704, equations 1 to 3). To be called in a compact
    method: it adds a layer called `name`.
    """
    scores = nn.Dense(1, kernel_init=normal_02, dtype=dtype, name=name)(x)
    scores = widened(scores)
    weights = jax.nn.softmax(scores, axis=1).astype(x.dtype)
    return jnp.einsum("ntp,ntd->nd", weights, x)


class MAPHead(nn.Module):
    """Multi-head attention pooling: [N, T, D] -> [N, D].

    A learned `probe` [1, 1, D] asks all tokens; y + MLP(norm(y)) of what it gets is the result, to
    which the probe itself is not added (Zhai et al. 2022, arXiv:2106.04560, section 3.2, as in
    big_vision).
    """

    num_heads: int
    mlp_dim: int
    norm: Factory = LayerNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, bias: jax.Array | None = None) -> jax.Array:
        """`bias` is added to the scores [N, heads, 1, T] of the tokens, such as a mask."""
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        attention = MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, name="MultiHeadDotProductAttention_0"
        )
        y = attention(x, queries=probe, bias=bias, train=train)
        norm = self.norm(dtype=self.dtype, name="LayerNorm_0")
        mlp = MlpBlock(self.mlp_dim, dtype=self.dtype, name="MlpBlock_0")
        return (y + mlp(norm(y), train=train))[:, 0]

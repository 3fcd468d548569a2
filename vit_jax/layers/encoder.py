"""The stack of blocks of models whose tokens keep one resolution."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.block import Factory, run_blocks, vit_block
from vit_jax.layers.norm import LayerNorm


class Encoder(nn.Module):
    """Dropout, blocks, final norm: [N, T, D] -> [N, T, D].

    Attributes:
      dropout_rate: Of the tokens, on the output of each attention, and twice in each MLP.
      attention_dropout_rate: On the attention weights.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      block: Sizes and rates to the factory of a block, as `vit_block`.
      norm: Of the output, called as `factory(name=…, dtype=…)(x)`.
      remat, scan: As of `run_blocks`.
    """

    num_layers: int
    mlp_dim: int
    num_heads: int
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    block: Callable[..., Factory] = vit_block
    norm: Factory = LayerNorm
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        block = self.block(
            self.num_heads,
            self.mlp_dim,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            dtype=self.dtype,
        )
        x = nn.Dropout(self.dropout_rate, name="Dropout_0")(x, deterministic=not train)
        x = run_blocks(
            block,
            x,
            depth=self.num_layers,
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
            scan=self.scan,
        )
        return self.norm(dtype=self.dtype, name="encoder_norm")(x)

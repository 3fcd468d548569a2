"""The stack of blocks of models whose tokens keep one resolution."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import linen as nn

from vit_jax.layers.block import Factory, run_blocks, vit_block
from vit_jax.layers.norm import LayerNorm


class Encoder(nn.Module):
    """Positions, dropout, blocks, final norm: [N, T, D] -> [N, T, D].

    Attributes:
      dropout_rate: On the tokens, on the output of each attention, and twice in each MLP.
      attention_dropout_rate: On the attention weights.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      positions: Called as `factory(name=…)(x)`; None where the tokens have their positions.
      block: Sizes and rates to the factory of a block, as `vit_block`.
      norm: Called as `factory(name=…, dtype=…)(x)` with the output of the last block.
      remat, scan: As in `run_blocks`.
    """

    num_layers: int
    mlp_dim: int
    num_heads: int
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    positions: Factory | None = None
    block: Callable[..., Factory] = vit_block
    norm: Factory = LayerNorm
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, **context: Any) -> jax.Array:
        """`context` is what every block is told beside the tokens, as in `run_blocks`."""
        x = self.run(self.prepare(x, train), train, **context)
        return self.norm(dtype=self.dtype, name="encoder_norm")(x)

    def prepare(self, x: jax.Array, train: bool) -> jax.Array:
        """What the first block gets."""
        if self.positions is not None:
            x = self.positions(name="posembed_input")(x)
        return nn.Dropout(self.dropout_rate, name="Dropout_0")(x, deterministic=not train)

    def run(self, x: jax.Array, train: bool, **context: Any) -> jax.Array:
        """What the last block gives."""
        return run_blocks(
            self.make_block(),
            x,
            depth=self.num_layers,
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rates(),
            remat=self.remat,
            scan=self.scan,
            context=context,
        )

    def make_block(self, **fields: Any) -> Factory:
        """What makes a block; `fields` are arguments of `block` beside sizes and rates."""
        return self.block(
            self.num_heads,
            self.mlp_dim,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            dtype=self.dtype,
            **fields,
        )

    def drop_path_rates(self) -> float | Sequence[float]:
        """As `run_blocks` takes them."""
        return self.drop_path_rate


AnEncoder = TypeVar("AnEncoder", bound=Encoder)


def encoder_of(model: nn.Module, cls: type[AnEncoder] = Encoder, **factories: Any) -> AnEncoder:
    """The encoder of a model, called `Transformer`: a field that both have is the model's.

    To be called in a compact method.

    Args:
      cls: Its class.
      factories: Fields of the encoder that are none of the model: `block`, `norm`, `positions`.
    """
    shared = cls.__dataclass_fields__.keys() & model.__dataclass_fields__.keys()
    fields = {name: getattr(model, name) for name in shared - {"parent", "name"}}
    return cls(name="Transformer", **fields, **factories)

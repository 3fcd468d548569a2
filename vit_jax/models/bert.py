"""BERT as a text tower: its encoder, and a linear head on the first token.

Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv:1810.04805), as
Zhai et al. 2022 (LiT, arXiv:2111.07991) use it: without the pooler, and with GELU in its tanh form.
Parameter names are those of the released LiT files. Sizes: `vit_jax.configs.models`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError
from vit_jax.layers.attention import MultiHeadDotProductAttention, attend
from vit_jax.layers.block import run_blocks
from vit_jax.layers.norm import LayerNorm12
from vit_jax.layers.precision import widened
from vit_jax.layers.text_model import Embedded, TextModel

# Cut at two standard deviations, and not scaled up for that.
_init = nn.initializers.truncated_normal(stddev=0.02)
_Dense = functools.partial(nn.Dense, kernel_init=_init)
# What is added to the scores of tokens that must not see each other.
_UNSEEN = -1e10


class Embedder(nn.Module):
    """Positions, segment 0 and tokens, added in this order: [N, L] -> [N, L, D].

    Attributes:
      max_length: Rows of the table of positions.
      num_segments: Rows of the table of segments; a text is one segment, the first.
    """

    vocab_size: int
    hidden_size: int
    max_length: int
    num_segments: int
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        def embed(what: str, rows: int, ids: jax.Array) -> jax.Array:
            return nn.Embed(
                rows,
                self.hidden_size,
                embedding_init=_init,
                dtype=self.dtype,
                name=f"embedders_{what}_ids",
            )(ids)

        positions = embed("position", self.max_length, jnp.arange(tokens.shape[1])[None])
        segments = embed("segment", self.num_segments, jnp.zeros((1, 1), jnp.int32))
        # The original's lookup clamps ids that the vocabulary does not have.
        ids = jnp.clip(tokens, 0, self.vocab_size - 1)
        return positions + segments + embed("token", self.vocab_size, ids)


class SelfAttention(MultiHeadDotProductAttention):
    """Attention whose kernels have two axes, and which leaves the output layer to its caller.

    [N, L, D] -> [N, L, D]; kernels are `query|key|value/kernel` [D, heads * d]. Fields are those of
    `MultiHeadDotProductAttention`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, bias: jax.Array, train: bool) -> jax.Array:
        """`bias` is added to the scores, see `attend`."""
        project = functools.partial(nn.Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        by_head = (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (
            checkpoint_name(project(x.shape[-1], name=name)(x), "qkv").reshape(by_head)
            for name in ("query", "key", "value")
        )
        on_weights = self._on_weights(train)
        look = self._seen if on_weights is None and self._watched() else None
        y = attend(q, k, v, bias=bias, on_weights=on_weights, look=look)
        return checkpoint_name(y.reshape(x.shape), "attention")


class AttentionBlock(nn.Module):
    """norm(x + attention(x)): [N, L, D] -> [N, L, D]."""

    num_heads: int
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, *, train: bool) -> jax.Array:
        y = SelfAttention(
            self.num_heads,
            dropout_rate=self.attention_dropout_rate,
            kernel_init=_init,
            dtype=self.dtype,
            name="attention_layer",
        )(x, bias=bias, train=train)
        y = _Dense(x.shape[-1], dtype=self.dtype, name="dense_layer")(y)
        y = nn.Dropout(self.dropout_rate, name="dropout")(y, deterministic=not train)
        return LayerNorm12(dtype=self.dtype, name="layer_norm")(x + y)


class Mlp(nn.Module):
    """The hidden layer and its activation: [N, L, D] -> [N, L, mlp_dim]."""

    mlp_dim: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _Dense(self.mlp_dim, dtype=self.dtype, name="dense_layer")(x)
        return nn.gelu(checkpoint_name(x, "mlp"))


class MlpBlock(nn.Module):
    """norm(x + MLP(x)): [N, L, D] -> [N, L, D]; its dropout is one for all tokens of a text."""

    mlp_dim: int
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = Mlp(self.mlp_dim, dtype=self.dtype, name="mlp")(x)
        y = _Dense(x.shape[-1], dtype=self.dtype, name="dense_layer")(y)
        dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,), name="dropout")
        y = dropout(y, deterministic=not train)
        return LayerNorm12(dtype=self.dtype, name="layer_norm")(x + y)


class PostNormBlock(nn.Module):
    """Each branch is normalised after it is added (ibid., section 3). [N, L, D] -> [N, L, D].

    It takes and returns (tokens, bias of the scores), so that `run_blocks` hands both on.
    """

    num_heads: int
    mlp_dim: int
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: tuple[jax.Array, jax.Array], drop_path_rate: float | jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        del drop_path_rate  # BERT has no stochastic depth.
        tokens, bias = x
        tokens = AttentionBlock(
            self.num_heads,
            self.dropout_rate,
            self.attention_dropout_rate,
            dtype=self.dtype,
            name="attention_block",
        )(tokens, bias, train=train)
        mlp = MlpBlock(self.mlp_dim, self.dropout_rate, dtype=self.dtype, name="mlp_block")
        return mlp(tokens, train=train), bias


class LayerSequence(nn.Module):
    """The stack of blocks; fields are those of `Bert`."""

    num_layers: int
    block: Any
    remat: bool | str = False

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, *, train: bool) -> jax.Array:
        stack = {"depth": self.num_layers, "name": "layers", "train": train, "remat": self.remat}
        return run_blocks(self.block, (x, bias), **stack)[0]


class EncoderBlock(nn.Module):
    """The released files have the stack of blocks one level deeper than it need be."""

    sequence: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, *, train: bool) -> jax.Array:
        return self.sequence(name="layer_sequence")(x, bias, train=train)


class BertEncoder(nn.Module):
    """Tokens [N, L], 0 where a text is filled up, to [N, L, D]; fields are those of `Bert`."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    vocab_size: int
    max_length: int
    num_segments: int
    dropout_rate: float
    attention_dropout_rate: float
    remat: bool | str
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        x = Embedder(
            self.vocab_size,
            self.hidden_size,
            self.max_length,
            self.num_segments,
            dtype=self.dtype,
            name="embedder",
        )(tokens)
        x = LayerNorm12(dtype=self.dtype, name="layer_norm")(x)
        x = nn.Dropout(self.dropout_rate, name="dropout")(x, deterministic=not train)
        block = functools.partial(
            PostNormBlock,
            self.num_heads,
            self.mlp_dim,
            self.dropout_rate,
            self.attention_dropout_rate,
            dtype=self.dtype,
        )
        sequence = functools.partial(LayerSequence, self.num_layers, block, self.remat)
        return EncoderBlock(sequence, name="encoder_block")(x, padding_bias(tokens), train=train)


def padding_bias(tokens: jax.Array) -> jax.Array:
    """What is added to the scores of attention, [N, 1, L, L]: 0 where both tokens are of the text.

    As in the original, what fills a text up neither is seen nor sees: in float32 it averages over
    all positions. That changes nothing of the text itself.
    """
    real = tokens != 0
    both = real[:, None, :, None] & real[:, None, None, :]
    return jnp.where(both, 0.0, jnp.float32(_UNSEEN))


class Bert(TextModel):
    """Tokens [N, L] to embeddings [N, num_classes] or [N, hidden_size], float32 or wider.

    Attributes:
      num_classes: Outputs of the linear head; None or 0 for none.
      hidden_size, num_layers, num_heads, mlp_dim: Sizes, ibid., section 3.
      vocab_size: Tokens; an id that is none of them is taken for the nearest.
      max_length: Tokens of the longest text.
      num_segments: Segments that the tables tell apart; all of a text is the first.
      dropout_rate: On the embeddings, and on the output of each attention and of each MLP.
      attention_dropout_rate: On the attention weights.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows the parameters.

    Raises:
      UserError: for tokens that are none, or longer than `max_length`.
    """

    num_classes: int | None = None
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    vocab_size: int = 30522
    max_length: int = 512
    num_segments: int = 2
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    model_name: str | None = None
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> Embedded:
        """Returns the embedding, and 'transformed' [N, L, D], 'pre_logits' and 'logits' by name."""
        if tokens.shape[1] > self.max_length:
            raise UserError(
                f"expected texts of up to {self.max_length} tokens, got {tokens.shape[1]}; cut them"
            )
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"num_heads={self.num_heads} does not divide the width {self.hidden_size}"
            )
        shared = BertEncoder.__dataclass_fields__.keys() - {"parent", "name"}
        encoder = BertEncoder(**{f: getattr(self, f) for f in shared}, name="BertEncoder_0")
        x = encoder(tokens, train=train)
        out = {"transformed": x}
        x = out["pre_logits"] = widened(x[:, 0])
        if self.num_classes:
            x = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
            x = out["logits"] = widened(x)
        return x, out

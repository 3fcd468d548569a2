"""Compact Convolutional Transformer: a few convolutions make the tokens, all of them are read.

Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers" (arXiv:2104.05704).
Sizes: `vit_jax.models.variants.cct`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.block import Factory, run_blocks, torch_attention, torch_mlp
from vit_jax.layers.conv import conv
from vit_jax.layers.drop import DropPath
from vit_jax.layers.head import classify
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.pool import sequence_pool
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.tokens import map_tokens

_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_positions = functools.partial(AddPositionEmbs, init=nn.initializers.normal(stddev=0.2))


class Tokenizer(nn.Module):
    """Convolution, ReLU, maximum over 3×3 with stride 2, `num_layers` times (ibid., section 3.3).

    [N, H, W, 3] -> [N, H', W', features]; each layer divides the sides by 2 `stride`, rounding up.

    Attributes:
      features: Of the last layer; those before it have `hidden`.
    """

    features: int
    num_layers: int
    kernel: int
    stride: int
    hidden: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_layers):
            x = conv(
                self.features if i == self.num_layers - 1 else self.hidden,
                self.kernel,
                stride=self.stride,
                use_bias=False,
                kernel_init=_he_normal,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


class CompactBlock(nn.Module):
    """x += attention(norm(x)); x = norm(x); x += mlp(x): the second norm is in the residual stream.

    [N, T, D] -> [N, T, D]. Attributes: as of `vit_jax.layers.block.Block`.
    """

    attention: Factory
    mlp: Factory
    norm: Factory
    residual: Factory = DropPath

    @nn.compact
    def __call__(self, x: jax.Array, drop_path_rate: float | jax.Array, *, train: bool):
        y = self.norm(name="LayerNorm_0")(x)
        y = self.attention(name="MultiHeadDotProductAttention_0")(y, train=train)
        x = x + self.residual(name="residual_0")(y, drop_path_rate, train=train)
        x = self.norm(name="LayerNorm_1")(x)
        y = self.mlp(name="MlpBlock_0")(x, train=train)
        return x + self.residual(name="residual_1")(y, drop_path_rate, train=train)


class Encoder(nn.Module):
    """Dropout, blocks and final norm: [N, T, D] -> [N, T, D].

    Attributes:
      dropout_rate: Of the tokens, on the output of the attention, and twice in the MLP.
      attention_dropout_rate: On the attention weights.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      remat, scan: As of `run_blocks`.
    """

    num_layers: int
    mlp_dim: int
    num_heads: int
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        fields: dict[str, Any] = {"dropout_rate": self.dropout_rate, "dtype": self.dtype}
        norm = functools.partial(LayerNorm5, dtype=self.dtype)
        attention = torch_attention(
            self.num_heads,
            qkv_bias=False,
            attention_dropout_rate=self.attention_dropout_rate,
            **fields,
        )
        x = nn.Dropout(self.dropout_rate, name="Dropout_0")(x, deterministic=not train)
        x = run_blocks(
            functools.partial(
                CompactBlock, attention=attention, mlp=torch_mlp(self.mlp_dim, **fields), norm=norm
            ),
            x,
            depth=self.num_layers,
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
            scan=self.scan,
        )
        return norm(name="encoder_norm")(x)


class CCT(nn.Module):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      tokenizer: Fields of `Tokenizer`, but for `features`.
      hidden_size: D, the width of a token.
      transformer: Fields of `Encoder`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    tokenizer: Mapping[str, Any]
    hidden_size: int
    transformer: Mapping[str, Any]
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        fields = {"dtype": self.dtype, **self.tokenizer}
        x = map_tokens(Tokenizer(self.hidden_size, name="tokenizer", **fields)(images))
        x = _positions(name="posembed_input")(x)
        x = Encoder(name="Transformer", **{"dtype": self.dtype, **self.transformer})(x, train=train)
        x = sequence_pool(x, dtype=self.dtype)
        return classify(x, self.num_classes, dtype=self.dtype)

"""Compact Transformers: ViT-Lite reads patches, CVT pools them, CCT has convolutions before them.

Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers" (arXiv:2104.05704).
Sizes: `vit_jax.families.cct`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import chosen
from vit_jax.layers.block import Factory, torch_attention, torch_mlp
from vit_jax.layers.conv import conv, max_pool
from vit_jax.layers.drop import DropPath
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.patch import PatchSize
from vit_jax.layers.pool import sequence_pool
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.sincos import sinusoid
from vit_jax.layers.tokens import map_tokens, patch_tokens, prepend_tokens

_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _sines(_: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(sinusoid(shape[1], shape[2]))


POSITIONS = {
    "learned": functools.partial(AddPositionEmbs, nn.initializers.normal(stddev=0.2)),
    "sine": functools.partial(AddPositionEmbs, _sines, frozen=True),
    "none": None,
}


def add_positions(x: jax.Array, kind: str) -> jax.Array:
    """Tokens [N, T, D] with their positions; to be called in a compact method.

    Args:
      kind: 'learned'; 'sine', which are computed once and never trained; or 'none'.
    """
    make = chosen(kind, POSITIONS, "position_embedding")
    return x if make is None else make(name="posembed_input")(x)


class Tokenizer(nn.Module):
    """Convolution, ReLU, maximum over 3×3 with stride 2, `num_convolutions` times (section 3.3).

    [N, H, W, 3] -> [N, H', W', features]; each layer divides the sides by 2 `stride`, rounding up.

    Attributes:
      features: Channels of the last convolution; those before it have `stem_features`.
    """

    features: int
    num_convolutions: int
    kernel_size: int
    stride: int
    stem_features: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_convolutions):
            x = conv(
                self.features if i == self.num_convolutions - 1 else self.stem_features,
                self.kernel_size,
                stride=self.stride,
                use_bias=False,
                kernel_init=_he_normal,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x = max_pool(nn.relu(x))
        return x


class CompactBlock(nn.Module):
    """x += attention(norm(x)); x = norm(x); x += mlp(x): the second norm is in the residual stream.

    [N, T, D] -> [N, T, D]. Attributes: as in `vit_jax.layers.block.Block`.
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


def compact_block(
    num_heads: int,
    mlp_dim: int,
    *,
    dropout_rate: float,
    attention_dropout_rate: float,
    dtype: Any,
) -> Factory:
    """As `vit_jax.layers.block.vit_block`, without biases of query, key and value."""
    attention = torch_attention(
        num_heads,
        qkv_bias=False,
        dropout_rate=dropout_rate,
        attention_dropout_rate=attention_dropout_rate,
        dtype=dtype,
    )
    mlp = torch_mlp(mlp_dim, dropout_rate=dropout_rate, dtype=dtype)
    norm = functools.partial(LayerNorm5, dtype=dtype)
    return functools.partial(CompactBlock, attention=attention, mlp=mlp, norm=norm)


class CCT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      num_convolutions, kernel_size, stride, stem_features: As in `Tokenizer`.
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      position_embedding: As in `add_positions`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    num_convolutions: int
    kernel_size: int
    stride: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    stem_features: int = 64
    position_embedding: str = "learned"
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        tokenizer = Tokenizer(
            self.hidden_size,
            self.num_convolutions,
            self.kernel_size,
            self.stride,
            self.stem_features,
            dtype=self.dtype,
            name="tokenizer",
        )
        x = add_positions(map_tokens(tokenizer(images)), self.position_embedding)
        x = encoder_of(self, block=compact_block, norm=LayerNorm5)(x, train=train)
        x = sequence_pool(x, dtype=self.dtype)
        return classify(x, self.num_classes, dtype=self.dtype)


class ViTLite(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider; patches are the tokens.

    ViT-Lite (section 3.1) reads a class token; CVT (section 3.2) has none, and pools all tokens.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      class_token: Whether one is read, which has a position too; else all tokens are pooled.
      position_embedding: As in `add_positions`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    class_token: bool = True
    position_embedding: str = "learned"
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = patch_tokens(
            images, self.hidden_size, self.patch_size, kernel_init=_he_normal, dtype=self.dtype
        )
        if self.class_token:
            x = prepend_tokens(self, x, "cls", init=nn.initializers.zeros)
        x = add_positions(x, self.position_embedding)
        x = encoder_of(self, block=compact_block, norm=LayerNorm5)(x, train=train)
        x = x[:, 0] if self.class_token else sequence_pool(x, dtype=self.dtype)
        return classify(x, self.num_classes, dtype=self.dtype)

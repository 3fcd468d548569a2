"""CeiT: convolutions before the tokens and between them, and attention over the layers.

Yuan et al. 2021, "Incorporating Convolution Designs into Visual Transformers" (arXiv:2103.11816).
Sizes: `vit_jax.families.ceit`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.block import Block, Factory, run_blocks, torch_attention, torch_mlp
from vit_jax.layers.conv import Normed, conv, conv_norm, max_pool
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.mlp import exact_gelu
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch import embed_patches
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.tokens import map_tokens, prepend_tokens

Layers = tuple[jax.Array, ...]  # the class tokens [N, D] of the blocks so far


class LocallyEnhancedMlp(nn.Module):
    """Patches widened, convolved with their neighbours, and narrowed (section 3.2, equations 5-10).

    Class token and patches [N, 1 + T, D] -> [N, 1 + T, D]; the class token stays as it is.

    Attributes:
      mlp_dim: Channels in between.
      grid: (rows, columns) of the T patches.
    """

    mlp_dim: int
    grid: tuple[int, int]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        y = x[:, 1:].reshape(-1, *self.grid, width)
        y = self._convolved(y, "expand", self.mlp_dim, 1, train)
        y = self._convolved(exact_gelu(y), "depthwise", self.mlp_dim, 3, train, groups=self.mlp_dim)
        y = self._convolved(exact_gelu(y), "project", width, 1, train)
        return jnp.concatenate([x[:, :1], map_tokens(y)], axis=1)

    def _convolved(
        self, x: jax.Array, name: str, features: int, kernel: int, train: bool, groups: int = 1
    ) -> jax.Array:
        """A convolution with a bias and its batch normalisation."""
        layer = functools.partial(
            conv, features, kernel, groups=groups, dtype=self.dtype, name="conv"
        )
        mark = "mlp" if name == "expand" else None
        return Normed(layer, mark=mark, dtype=self.dtype, name=name)(x, train=train)


class RememberingBlock(Block):
    """A block that adds its class token to those of the blocks before it.

    Tokens [N, 1 + T, D] and class tokens to the same, with one class token more.
    """

    @nn.compact
    def __call__(
        self, state: tuple[jax.Array, Layers], drop_path_rate: float | jax.Array, *, train: bool
    ) -> tuple[jax.Array, Layers]:
        x, layers = state
        x = super().__call__(x, drop_path_rate, train=train)
        return x, (*layers, x[:, 0])


class LayerwiseAttention(nn.Module):
    """The last layer's class token reads those of all layers (section 3.3): [N, L, D] -> [N, D].

    Attributes: as in `vit_jax.layers.block.Block`; `attention` takes `queries`.
    """

    attention: Factory
    mlp: Factory
    norm: Factory

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.norm(name="LayerNorm_0")(x)
        y = self.attention(name="MultiHeadDotProductAttention_0")(y, queries=y[:, -1:], train=train)
        x = x[:, -1] + y[:, 0]
        y = self.norm(name="LayerNorm_1")(x)
        return x + self.mlp(name="MlpBlock_0")(y, train=train)


class CeiT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    The paper's stem has an activation; the official code has none, and neither has this one.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels of the image, which the stem makes four times smaller first.
      hidden_size: D, the width of a token.
      stem_features: Channels of the stem.
      dropout_rate: On the tokens, on the output of each attention, and twice in the MLP of the
        attention over layers; not in the blocks' MLPs.
      attention_dropout_rate: On the attention weights.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    stem_features: int = 64
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = conv_norm(self.stem_features, 7, 2, dtype=self.dtype, name="stem")(images, train=train)
        side = self.patch_size // 4
        x = embed_patches(
            max_pool(x), self.hidden_size, (side, side), dtype=self.dtype, name="embedding"
        )
        grid = (x.shape[1], x.shape[2])
        x = prepend_tokens(self, map_tokens(x), "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        x = nn.Dropout(self.dropout_rate, name="Dropout_0")(x, deterministic=not train)
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        attention = torch_attention(
            self.num_heads,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            dtype=self.dtype,
        )
        mlp = functools.partial(LocallyEnhancedMlp, self.mlp_dim, grid, self.dtype)
        _, layers = run_blocks(
            functools.partial(RememberingBlock, attention, mlp, norm),
            (x, ()),
            depth=self.num_layers,
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
        )
        x = self._read(layers, attention, norm, train)
        return classify(x, self.num_classes, dtype=self.dtype)

    def _read(
        self, layers: Sequence[jax.Array], attention: Factory, norm: Factory, train: bool
    ) -> jax.Array:
        """The class tokens [N, D] of all layers to the features [N, D]."""
        x = jnp.stack(layers, axis=1)
        x = AddPositionEmbs(nn.initializers.zeros, name="posembed_layers")(x)
        mlp = torch_mlp(self.mlp_dim, dropout_rate=self.dropout_rate, dtype=self.dtype)
        x = LayerwiseAttention(attention, mlp, norm, name="layerwise_attention")(x, train=train)
        return norm(name="encoder_norm")(x)

"""Convolutional vision Transformer.

Wu et al. 2021, "CvT: Introducing Convolutions to Vision Transformers" (arXiv:2103.15808). Sizes:
`vit_jax.models.variants.cvt`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError, suggest
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import exact_gelu, run_blocks, vit_block
from vit_jax.layers.conv import ConvNorm
from vit_jax.layers.drop import drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.patch import PatchEmbedding
from vit_jax.layers.stages import show_map
from vit_jax.layers.tokens import map_tokens, prepend_tokens


def quick_gelu(x: jax.Array) -> jax.Array:
    """x σ(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2)."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


class ConvolutionalVisionTransformer(nn.Module):
    """Images [N, H, W, 3] of any size to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      embed_dims, depths, num_heads: Of each stage.
      mlp_ratio: Width of the MLPs, in widths of their stage.
      activation: Of the MLPs: 'quick_gelu', with which the published weights were trained, or
        'gelu', the erf form, with which Hugging Face runs them.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0 over the blocks
        of the last stage; the others have none, as in the official code.
      remat: As of `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for an unknown activation.
    """

    num_classes: int
    embed_dims: Sequence[int]
    depths: Sequence[int]
    num_heads: Sequence[int]
    mlp_ratio: int = 4
    activation: str = "quick_gelu"
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation={self.activation!r}.{suggest(self.activation, ACTIVATIONS)} "
                f"Known: {sorted(ACTIVATIONS)}"
            )
        x, cls = images, None
        for i, width in enumerate(self.embed_dims):
            last = i == len(self.embed_dims) - 1
            x, cls = Stage(
                width,
                patch=(7, 4, 2) if i == 0 else (3, 2, 1),
                num_heads=self.num_heads[i],
                mlp_dim=self.mlp_ratio * width,
                activation=ACTIVATIONS[self.activation],
                drop_path_rates=drop_path_rates(
                    self.drop_path_rate if last else 0.0, self.depths[i]
                ),
                class_token=last,
                remat=self.remat,
                dtype=self.dtype,
                name=f"stage_{i}",
            )(x, train=train)
            show_map(self, i, x)
        cls = LayerNorm5(dtype=self.dtype, name="encoder_norm")(cls)
        return classify(cls, self.num_classes, dtype=self.dtype)


class Stage(nn.Module):
    """Overlapping patches, blocks: a map [N, H, W, C] to a map [N, H', W', D] and a class token.

    Section 3 and figure 2. The class token is [N, D], or None without one.

    Attributes:
      patch: Kernel, stride and padding.
      drop_path_rates: Of each block.
      class_token: Whether one joins the map's tokens.
    """

    width: int
    patch: tuple[int, int, int]
    num_heads: int
    mlp_dim: int
    activation: Callable[[jax.Array], jax.Array]
    drop_path_rates: Sequence[float]
    class_token: bool
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array | None]:
        x = PatchEmbedding(self.width, *self.patch, dtype=self.dtype, name="embedding")(x)
        size = x.shape
        x = map_tokens(x)
        if self.class_token:
            x = prepend_tokens(self, x, "cls")
        # Scaled by the width of all heads together, as in the official code.
        attention = functools.partial(
            ConvAttention, grid=(size[1], size[2]), scale=self.width**-0.5
        )
        block = vit_block(
            self.num_heads,
            self.mlp_dim,
            activation=self.activation,
            norm=LayerNorm5,
            attention=attention,
            dtype=self.dtype,
        )
        x = run_blocks(
            block,
            x,
            depth=len(self.drop_path_rates),
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rates,
            remat=self.remat,
        )
        cls, x = (x[:, 0], x[:, 1:]) if self.class_token else (None, x)
        return x.reshape(size), cls


class ConvAttention(MultiHeadDotProductAttention):
    """Attention whose projections look at neighbours: [N, T, D] -> [N, T, D].

    Queries, keys and values each go through a depthwise convolution with batch normalisation
    before they are projected; that of keys and values halves the map (section 3.2). Tokens before
    those of the map bypass the convolutions.

    Attributes: as of `MultiHeadDotProductAttention`; and
      grid: Height and width of the map.
    """

    grid: tuple[int, int] = (14, 14)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, **fields: Any) -> jax.Array:
        """`fields`: `bias`, as of `attend`."""
        n, length, width = x.shape
        others = length - self.grid[0] * self.grid[1]
        cells = x[:, others:].reshape(n, *self.grid, width)

        def convolved(name: str, stride: int) -> jax.Array:
            y = ConvNorm(width, 3, stride, groups=width, dtype=self.dtype, name=name)
            return jnp.concatenate([x[:, :others], map_tokens(y(cells, train=train))], axis=1)

        return super().__call__(
            convolved("key_conv", 2),
            queries=convolved("query_conv", 1),
            values=convolved("value_conv", 2),
            train=train,
            **fields,
        )

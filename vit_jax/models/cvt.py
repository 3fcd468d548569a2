"""Convolutional vision Transformer.

Wu et al. 2021, "CvT: Introducing Convolutions to Vision Transformers" (arXiv:2103.15808). Sizes:
`vit_jax.families.cvt`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError, suggest
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import Factory, vit_block
from vit_jax.layers.conv import conv_norm
from vit_jax.layers.drop import drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.mlp import exact_gelu, quick_gelu
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.patch import PatchEmbedding
from vit_jax.layers.stages import Size, Stage, run_stages
from vit_jax.layers.tokens import map_tokens

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


class ConvolutionalVisionTransformer(ImageModel):
    """Images [N, H, W, 3] of any size to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      hidden_sizes, depths, num_heads: A value for each stage.
      mlp_ratios: Width of each stage's MLPs, in widths of the stage.
      activation: In the MLPs: 'quick_gelu', with which the published weights were trained, or
        'gelu', the erf form, with which Hugging Face runs them.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0 over the blocks
        of the last stage; the others have none, as in the official code.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for an unknown activation.
    """

    num_classes: int
    hidden_sizes: Sequence[int]
    depths: Sequence[int]
    num_heads: Sequence[int]
    mlp_ratios: Sequence[int]
    activation: str = "quick_gelu"
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation={self.activation!r}.{suggest(self.activation, ACTIVATIONS)} "
                f"Known: {sorted(ACTIVATIONS)}"
            )
        stages = [self._stage(i) for i in range(len(self.depths))]
        _, cls = run_stages(self, images, stages, train=train)
        cls = LayerNorm5(dtype=self.dtype, name="encoder_norm")(cls[:, 0])
        return classify(cls, self.num_classes, dtype=self.dtype)

    def _stage(self, i: int) -> Factory:
        """Overlapping patches, blocks; in the last stage a class token (section 3 and figure 2)."""
        width, depth, last = self.hidden_sizes[i], self.depths[i], i == len(self.depths) - 1
        patch = (7, 4, 2) if i == 0 else (3, 2, 1)

        def blocks(size: Size) -> Sequence[Factory]:
            # Scaled by the width of all heads together, as in the official code.
            attention = functools.partial(ConvAttention, grid=size, scale=width**-0.5)
            block = vit_block(
                self.num_heads[i],
                int(width * self.mlp_ratios[i]),
                activation=ACTIVATIONS[self.activation],
                norm=LayerNorm5,
                attention=attention,
                dtype=self.dtype,
            )
            return [block] * depth

        return functools.partial(
            Stage,
            blocks,
            drop_path_rates(self.drop_path_rate if last else 0.0, depth),
            embedding=functools.partial(
                PatchEmbedding, width, *patch, dtype=self.dtype, name="embedding"
            ),
            tokens=("cls",) if last else (),
            remat=self.remat,
        )


class ConvAttention(MultiHeadDotProductAttention):
    """Attention whose projections look at neighbours: a map or its tokens, to the same.

    Queries, keys and values each go through a depthwise convolution with batch normalisation
    before they are projected; that of keys and values halves the map (section 3.2). Tokens before
    those of the map bypass the convolutions.

    Attributes: as in `MultiHeadDotProductAttention`; and
      grid: Height and width of the map.
    """

    grid: tuple[int, int] = (14, 14)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, **fields: Any) -> jax.Array:
        """`fields`: `bias`, as in `attend`."""
        n, width = x.shape[0], x.shape[-1]
        tokens = x.reshape(n, -1, width)
        others = tokens.shape[1] - self.grid[0] * self.grid[1]
        cells = tokens[:, others:].reshape(n, *self.grid, width)

        def convolved(name: str, stride: int) -> jax.Array:
            y = conv_norm(width, 3, stride, groups=width, dtype=self.dtype, name=name)
            return jnp.concatenate([tokens[:, :others], map_tokens(y(cells, train=train))], axis=1)

        y = super().__call__(
            convolved("key_conv", 2),
            queries=convolved("query_conv", 1),
            values=convolved("value_conv", 2),
            train=train,
            **fields,
        )
        return y.reshape(x.shape)

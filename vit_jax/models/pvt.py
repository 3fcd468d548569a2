"""Pyramid Vision Transformer.

Wang et al. 2021, "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without
Convolutions" (arXiv:2102.12122). Sizes: `vit_jax.models.variants.pvt`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import Factory, run_blocks, vit_block
from vit_jax.layers.drop import stage_drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch import PatchEmbedding
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.reduced_attention import ReducedAttention
from vit_jax.layers.stages import show_map
from vit_jax.layers.tokens import map_tokens, prepend_tokens


class PyramidVisionTransformer(nn.Module):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    The position embeddings are for one image size, as those of a Vision Transformer.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      embed_dims, depths, num_heads: Of each stage.
      mlp_ratios: Width of each stage's MLPs, in widths of the stage.
      sr_ratios: R of each stage: keys and values stand for R × R cells of the map. That of the
        last is 1: its class token lies on no map.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0 over all stages.
      remat: As of `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for an image so small that a map is smaller than one R × R region, or another R
        of the last stage.
    """

    num_classes: int
    embed_dims: Sequence[int]
    depths: Sequence[int]
    num_heads: Sequence[int]
    mlp_ratios: Sequence[int]
    sr_ratios: Sequence[int] = (8, 4, 2, 1)
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.sr_ratios[-1] != 1:
            raise UserError(f"sr_ratios={tuple(self.sr_ratios)}: the last one must be 1")
        x, cls = images, None
        rates = stage_drop_path_rates(self.drop_path_rate, self.depths)
        for i, width in enumerate(self.embed_dims):
            x, cls = Stage(
                width,
                patch=4 if i == 0 else 2,
                sr_ratio=self.sr_ratios[i],
                num_heads=self.num_heads[i],
                mlp_dim=int(width * self.mlp_ratios[i]),
                drop_path_rates=rates[i],
                class_token=i == len(self.depths) - 1,
                remat=self.remat,
                dtype=self.dtype,
                name=f"stage_{i}",
            )(x, train=train)
            show_map(self, i, x)
        cls = LayerNorm(dtype=self.dtype, name="encoder_norm")(cls)
        return classify(cls, self.num_classes, dtype=self.dtype)


class Stage(nn.Module):
    """Patches, positions, blocks: a map [N, H, W, C] to a map [N, H', W', D] and a class token.

    Section 3.2. The class token is [N, D], or None without one.

    Attributes:
      class_token: Whether one joins the map's tokens, before positions are added.
      drop_path_rates: Of each block.
    """

    width: int
    patch: int
    sr_ratio: int
    num_heads: int
    mlp_dim: int
    drop_path_rates: Sequence[float]
    class_token: bool
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array | None]:
        x = PatchEmbedding(self.width, self.patch, dtype=self.dtype, name="embedding")(x)
        size = x.shape
        x = map_tokens(x)
        if self.class_token:
            x = prepend_tokens(self, x, "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        if not self.class_token:
            x = x.reshape(size)
        x = run_blocks(
            vit_block(self.num_heads, self.mlp_dim, attention=self._attention(), dtype=self.dtype),
            x,
            depth=len(self.drop_path_rates),
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rates,
            remat=self.remat,
        )
        return (x[:, 1:].reshape(size), x[:, 0]) if self.class_token else (x, None)

    def _attention(self) -> Factory:
        if self.class_token:  # which lies on no map
            return MultiHeadDotProductAttention
        reduction = functools.partial(PatchEmbedding, self.width, self.sr_ratio, dtype=self.dtype)
        return functools.partial(
            ReducedAttention, reduction=reduction if self.sr_ratio > 1 else None
        )

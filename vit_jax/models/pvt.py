"""Pyramid Vision Transformer.

Wang et al. 2021, "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without
Convolutions" (arXiv:2102.12122). Sizes: `vit_jax.families.pvt`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import Factory, vit_block
from vit_jax.layers.drop import stage_drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch import PatchEmbedding
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.reduced_attention import ReducedAttention
from vit_jax.layers.stages import Stage, run_stages
from vit_jax.layers.tokens import map_tokens


class PyramidVisionTransformer(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    The position embeddings are for one image size, as those of a Vision Transformer.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      hidden_sizes, depths, num_heads: A value for each stage.
      mlp_ratios: Width of each stage's MLPs, in widths of the stage.
      sr_ratios: R of each stage: keys and values stand for R × R cells of the map. That of the
        last is 1: its class token lies on no map.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0 over all stages.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for an image so small that a map is smaller than one R × R region, or another R
        of the last stage.
    """

    num_classes: int
    hidden_sizes: Sequence[int]
    depths: Sequence[int]
    num_heads: Sequence[int]
    mlp_ratios: Sequence[int]
    sr_ratios: Sequence[int] = (8, 4, 2, 1)
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.sr_ratios[-1] != 1:
            raise UserError(f"sr_ratios={tuple(self.sr_ratios)}: the last one must be 1")
        rates = stage_drop_path_rates(self.drop_path_rate, self.depths)
        stages = [self._stage(i, own) for i, own in enumerate(rates)]
        _, cls = run_stages(self, images, stages, train=train)
        cls = LayerNorm(dtype=self.dtype, name="encoder_norm")(cls[:, 0])
        return classify(cls, self.num_classes, dtype=self.dtype)

    def _stage(self, i: int, drop_path_rates: Sequence[float]) -> Factory:
        """Patches, positions, blocks (section 3.2); in the last stage a class token among them."""
        width, last = self.hidden_sizes[i], i == len(self.depths) - 1
        block = vit_block(
            self.num_heads[i],
            int(width * self.mlp_ratios[i]),
            # A class token lies on no map that could be reduced.
            attention=MultiHeadDotProductAttention if last else self._reduced(i),
            dtype=self.dtype,
        )
        patch = 4 if i == 0 else 2
        return functools.partial(
            Stage,
            lambda size: [block] * len(drop_path_rates),
            drop_path_rates,
            embedding=functools.partial(
                PatchEmbedding, width, patch, dtype=self.dtype, name="embedding"
            ),
            tokens=("cls",) if last else (),
            positions=functools.partial(MapPositionEmbs, name="posembed_input"),
            remat=self.remat,
        )

    def _reduced(self, i: int) -> Factory:
        width, ratio = self.hidden_sizes[i], self.sr_ratios[i]
        reduction = functools.partial(PatchEmbedding, width, ratio, dtype=self.dtype)
        return functools.partial(ReducedAttention, reduction=reduction if ratio > 1 else None)


class MapPositionEmbs(AddPositionEmbs):
    """`AddPositionEmbs` of tokens, or of a map whose table is that of its tokens, row by row."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(map_tokens(x)).reshape(x.shape)

"""Pyramid Vision Transformer, second version.

Wang et al. 2022, "PVT v2: Improved Baselines with Pyramid Vision Transformer" (arXiv:2106.13797).
Sizes: `vit_jax.families.pvt_v2`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.block import Block, Factory, torch_attention
from vit_jax.layers.drop import stage_drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import he_depthwise, he_fan_out
from vit_jax.layers.mlp import ConvMlpBlock
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch import PatchEmbedding
from vit_jax.layers.reduced_attention import PooledReduction, ReducedAttention
from vit_jax.layers.stages import Stage, run_stages


class PyramidVisionTransformerV2(ImageModel):
    """Images [N, H, W, 3] of any size to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      hidden_sizes, depths, num_heads: A value for each stage.
      mlp_ratios: Width of each stage's MLPs, in widths of the stage.
      sr_ratios: R of each stage: keys and values stand for R × R cells of the map.
      linear: Whether keys and values come from a map of 7 × 7 averages instead (section 3).
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0 over all stages.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for an image so small that a map is smaller than one R × R region.
    """

    num_classes: int
    hidden_sizes: Sequence[int]
    depths: Sequence[int]
    num_heads: Sequence[int]
    mlp_ratios: Sequence[int]
    sr_ratios: Sequence[int] = (8, 4, 2, 1)
    linear: bool = False
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        rates = stage_drop_path_rates(self.drop_path_rate, self.depths)
        stages = [self._stage(i, own) for i, own in enumerate(rates)]
        x, _ = run_stages(self, images, stages, train=train)
        return classify(x.mean((1, 2)), self.num_classes, dtype=self.dtype)

    def _stage(self, i: int, drop_path_rates: Sequence[float]) -> Factory:
        """Overlapping patches, blocks, norm."""
        width, (kernel, stride) = self.hidden_sizes[i], (7, 4) if i == 0 else (3, 2)
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        reduction = self._reduction(width, self.sr_ratios[i])
        attention = functools.partial(ReducedAttention, reduction=reduction)
        block = functools.partial(
            Block,
            attention=torch_attention(self.num_heads[i], attention=attention, dtype=self.dtype),
            mlp=functools.partial(
                ConvMlpBlock,
                int(width * self.mlp_ratios[i]),
                nn.relu if self.linear else None,
                kernel_init=he_depthwise,
                dtype=self.dtype,
            ),
            norm=norm,
        )
        patches = functools.partial(PatchEmbedding, width, kernel, stride, kernel // 2)
        return functools.partial(
            Stage,
            lambda size: [block] * len(drop_path_rates),
            drop_path_rates,
            embedding=functools.partial(
                patches, kernel_init=he_fan_out, dtype=self.dtype, name="embedding"
            ),
            norm=functools.partial(norm, name="norm"),
            remat=self.remat,
        )

    def _reduction(self, width: int, ratio: int) -> Factory | None:
        init = {"kernel_init": he_fan_out, "dtype": self.dtype}
        if self.linear:
            return functools.partial(PooledReduction, **init)
        return None if ratio == 1 else functools.partial(PatchEmbedding, width, ratio, **init)

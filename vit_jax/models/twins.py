"""Twins-SVT and Twins-PCPVT.

Chu et al. 2021, "Twins: Revisiting the Design of Spatial Attention in Vision Transformers"
(arXiv:2104.13840). Sizes: `vit_jax.families.twins`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.block import Factory, vit_block
from vit_jax.layers.conditional_position import PositionEncodingGenerator
from vit_jax.layers.drop import stage_drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import he_depthwise, he_fan_out
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch import PatchEmbedding
from vit_jax.layers.reduced_attention import ReducedAttention
from vit_jax.layers.stages import Stage, run_stages
from vit_jax.layers.windows import WindowAttention


class Twins(ImageModel):
    """Images [N, H, W, 3] of any size to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      hidden_sizes, depths, num_heads: A value for each stage.
      mlp_ratios: Width of each stage's MLPs, in widths of the stage.
      sr_ratios: R of each stage: keys and values of global attention stand for R × R cells.
      window_size: Side of the windows of local attention, which every block of an even index has
        (SVT, section 3.2); None where all attention is global (PCPVT, section 3.1).
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
    window_size: int | None = None
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        rates = stage_drop_path_rates(self.drop_path_rate, self.depths)
        stages = [self._stage(i, own) for i, own in enumerate(rates)]
        x, _ = run_stages(self, images, stages, train=train)
        x = LayerNorm(dtype=self.dtype, name="encoder_norm")(x)
        return classify(x.mean((1, 2)), self.num_classes, dtype=self.dtype)

    def _stage(self, i: int, drop_path_rates: Sequence[float]) -> Factory:
        """Patches, then blocks, positions after the first of them (section 3.1 and figure 1)."""
        width, patch = self.hidden_sizes[i], 4 if i == 0 else 2
        mlp_dim = int(width * self.mlp_ratios[i])
        blocks = [
            vit_block(self.num_heads[i], mlp_dim, attention=attention, dtype=self.dtype)
            for attention in self._attentions(i)
        ]
        patches = functools.partial(PatchEmbedding, width, patch, kernel_init=he_fan_out)
        return functools.partial(
            Stage,
            lambda size: blocks,
            drop_path_rates,
            embedding=functools.partial(patches, dtype=self.dtype, name="embedding"),
            positions=functools.partial(
                PositionEncodingGenerator, he_depthwise, self.dtype, name="positions"
            ),
            positions_after=1,
            remat=self.remat,
        )

    def _attentions(self, stage: int) -> list[Factory]:
        """A factory for each block of a stage."""
        width, ratio = self.hidden_sizes[stage], self.sr_ratios[stage]
        reduction = functools.partial(
            PatchEmbedding, width, ratio, kernel_init=he_fan_out, dtype=self.dtype
        )
        everywhere = functools.partial(
            ReducedAttention, reduction=None if ratio == 1 else reduction
        )
        if self.window_size is None:
            return [everywhere] * self.depths[stage]
        window = (self.window_size, self.window_size)
        nearby = functools.partial(WindowAttention, window=window)
        return [everywhere if j % 2 else nearby for j in range(self.depths[stage])]

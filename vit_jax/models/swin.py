"""Swin Transformer.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
(arXiv:2103.14030). Sizes: `vit_jax.families.swin`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.block import Factory, vit_block
from vit_jax.layers.drop import stage_drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import normal_02
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.patch import PatchEmbedding
from vit_jax.layers.relative import MASKED, Size, relative_position_index, shifted_regions
from vit_jax.layers.stages import Stage, run_stages
from vit_jax.layers.windows import WindowAttention


class SwinTransformer(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    The parameters depend on the image size where a stage's map is smaller than the windows:
    these shrink to the map, and their tables of relative positions with them.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      hidden_size: Width of the first stage; it doubles with every stage.
      depths, num_heads: A value for each stage.
      window_size: Side of the windows, in cells of a map.
      patch_size: In pixels.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0 over all stages.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for an image smaller than one patch.
    """

    num_classes: int
    hidden_size: int
    depths: Sequence[int]
    num_heads: Sequence[int]
    window_size: int
    patch_size: int = 4
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        embedding = PatchEmbedding(
            self.hidden_size, self.patch_size, dtype=self.dtype, name="embedding"
        )
        x = embedding(images)
        rates = stage_drop_path_rates(self.drop_path_rate, self.depths)
        stages = [self._stage(i, own) for i, own in enumerate(rates)]
        x, _ = run_stages(self, x, stages, train=train)
        x = LayerNorm5(dtype=self.dtype, name="encoder_norm")(x)
        return classify(x.mean((1, 2)), self.num_classes, dtype=self.dtype)

    def _stage(self, i: int, drop_path_rates: Sequence[float]) -> Factory:
        """Patch merging, then blocks whose windows are shifted in every second one (equation 3)."""
        merging = functools.partial(PatchMerging, dtype=self.dtype, name="merging")

        def blocks(size: Size) -> Sequence[Factory]:
            window, shift = window_and_shift(size, self.window_size)
            shifts = [shift if j % 2 else (0, 0) for j in range(len(drop_path_rates))]
            attention = functools.partial(ShiftedWindowAttention, window=window)
            return [
                vit_block(
                    self.num_heads[i],
                    4 * self.hidden_size * 2**i,
                    norm=LayerNorm5,
                    attention=functools.partial(attention, shift=shift),
                    dtype=self.dtype,
                )
                for shift in shifts
            ]

        return functools.partial(
            Stage,
            blocks,
            drop_path_rates,
            embedding=merging if i > 0 else None,
            remat=self.remat,
        )


def window_and_shift(size: Size, largest: int) -> tuple[Size, Size]:
    """Windows no larger than the map; one as wide as the map is not shifted in that direction."""
    height, width = size
    shift = largest // 2
    return (
        (min(height, largest), min(width, largest)),
        (shift if height > largest else 0, shift if width > largest else 0),
    )


class PatchMerging(nn.Module):
    """2 × 2 cells side by side, projected to twice the width of one (section 3.1).

    [N, H, W, D] -> [N, ⌈H / 2⌉, ⌈W / 2⌉, 2D]; a row or column of zeros makes H and W even.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, d = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(n, -(-height // 2), 2, -(-width // 2), 2, d)
        # Column by column, as in the official code: (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(n, x.shape[1], x.shape[3], 4 * d)
        x = LayerNorm5(dtype=self.dtype, name="norm")(x)
        init = normal_02
        return nn.Dense(
            2 * d, use_bias=False, kernel_init=init, dtype=self.dtype, name="reduction"
        )(x)


class ShiftedWindowAttention(WindowAttention):
    """Attention in windows of a map rolled by `shift`, with biases of relative positions.

    Equation 4, section 3.2 and figure 4. Parameter `relative_position_bias`
    [(2 height - 1) (2 width - 1), heads] has a row for each distance of two cells of a window.

    Attributes: as in `WindowAttention`; and
      shift: How many rows and columns go from the beginning to the end.
    """

    shift: Size = (0, 0)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        height, width = self.window
        distances = (2 * height - 1) * (2 * width - 1)
        table = self.param("relative_position_bias", normal_02, (distances, self.num_heads))
        bias = table[relative_position_index(self.window)].transpose(2, 0, 1)[None, None]
        if not any(self.shift):
            return super().__call__(x, train=train, bias=bias)
        size = (x.shape[1], x.shape[2])
        regions = jnp.asarray(shifted_regions(size, self.window, self.shift))
        apart = regions[:, None, None, :] != regions[:, None, :, None]
        bias = bias + jnp.where(apart, MASKED, 0.0).astype(bias.dtype)[None]
        back = self.shift
        x = jnp.roll(x, (-back[0], -back[1]), (1, 2))
        return jnp.roll(super().__call__(x, train=train, bias=bias), back, (1, 2))

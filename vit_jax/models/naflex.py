"""SigLIP 2's models of variable size (NaFlex): images keep their aspect ratio, in one batch.

Tschannen et al. 2025, "SigLIP 2" (arXiv:2502.14786), section 2.4.2. Parameter names are
big_vision's. Sizes: `vit_jax.families.naflex`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.block import vit_block
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.flexible import AddResizedPositions, key_bias
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import CentredLayerNorm
from vit_jax.layers.patch import embed_patches
from vit_jax.layers.pool import MAPHead
from vit_jax.layers.tokens import map_tokens
from vit_jax.models.siglip import SigLIP
from vit_jax.patches import PatchBatch, in_squares


class NaFlexVision(ImageModel):
    """The image tower: a `PatchBatch`, or images [N, H, W, 3], to [N, num_classes] or [N, D].

    Images of one size need no mask; their sides are cut off to whole patches. What fills up an
    image of a `PatchBatch` changes nothing: the image alone gives the same.

    Attributes:
      num_classes: 0 returns the embedding [N, D].
      patch_size: The side of a patch in pixels.
      hidden_size: D, the width of a token.
      position_grid: Rows and columns of the table of positions, which is resized to each image.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for images smaller than a patch.
    """

    num_classes: int
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    position_grid: int = 16
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: PatchBatch | jax.Array, *, train: bool) -> jax.Array:
        if isinstance(images, PatchBatch):
            x = self._embedded(in_squares(images.patches, self.patch_size))
            x = x.reshape(*images.patches.shape[:2], self.hidden_size)
            grid, bias = images.grid, key_bias(images.valid)
        else:
            x = self._embedded(images)
            grid, bias = jnp.asarray([x.shape[1:3]], jnp.int32), None
            x = map_tokens(x)
        x = AddResizedPositions(self.position_grid, name="posembed_input")(x, grid)
        block = functools.partial(vit_block, activation=nn.gelu, norm=CentredLayerNorm)
        x = encoder_of(self, block=block, norm=CentredLayerNorm)(x, train=train, bias=bias)
        x = MAPHead(
            self.num_heads,
            self.mlp_dim,
            norm=CentredLayerNorm,
            dtype=self.dtype,
            name="MAPHead_0",
        )(x, train=train, bias=bias)
        return classify(x, self.num_classes, dtype=self.dtype)

    def _embedded(self, images: jax.Array) -> jax.Array:
        size = (self.patch_size, self.patch_size)
        return embed_patches(images, self.hidden_size, size, dtype=self.dtype, name="embedding")


class SigLIPNaFlex(SigLIP):
    """A `PatchBatch`, or images [N, H, W, 3], and tokens [N, L] to unit vectors, [N, D] each.

    Attributes: as in `SigLIP`.
    """

"""DeiT whose patches are kept apart: heads that talk, and a second classifier, of the patches.

Gong et al. 2021, "Vision Transformers with Patch Diversification" (arXiv:2104.12753). Sizes:
`vit_jax.families.diversepatch`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import vit_block
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify, show_heads
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.patch import PatchSize
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.talking_heads import TalkingHeadsAttention
from vit_jax.layers.tokens import patch_tokens, prepend_tokens, show_patches


class DiversePatchDeiT(ImageModel):
    """Images [N, H, W, 3] to the class token's logits [N, num_classes], float32 or wider.

    It shows the logits of both heads (`vit_jax.layers.head.HEADS`), the class token's and those of
    averages of the patches; the official code reports the accuracy of the first, and of the sum of
    both heads' probabilities. It shows the patches as they were embedded and as they are after the
    last norm (`vit_jax.layers.tokens.PATCHES`), which the losses that keep them apart compare.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      talking_heads: Whether heads are mixed before and after the softmax, without a bias, as in the
        published models.
      head_dropout_rate: On what either head gets.
      num_layers, num_heads, mlp_dim, dropout_rate, drop_path_rate, remat, scan: As in
        `vit_jax.layers.encoder.Encoder`. No attention weights are dropped, as in the official code.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    talking_heads: bool = True
    head_dropout_rate: float = 0.0
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, regions: jax.Array | None = None
    ) -> jax.Array:
        """`regions` [R, rows, columns] are weights of patches, such as 0 and 1: the second head is
        then shown for each weighted average, [N, R, num_classes], and not for that of all patches,
        [N, num_classes].
        """
        embedded = patch_tokens(images, self.hidden_size, self.patch_size, dtype=self.dtype)
        x = prepend_tokens(self, embedded, "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        talking = functools.partial(TalkingHeadsAttention, mix_bias=False)
        attention = talking if self.talking_heads else MultiHeadDotProductAttention
        block = functools.partial(vit_block, attention=attention)
        x = encoder_of(self, block=block)(x, train=train)
        cls, patches = x[:, 0], x[:, 1:]
        show_patches(self, embedded, patches)
        drop = functools.partial(nn.Dropout, self.head_dropout_rate, deterministic=not train)
        logits = classify(drop(name="Dropout_0")(cls), self.num_classes, dtype=self.dtype)
        averages = drop(name="Dropout_1")(average_patches(patches, regions))
        of_patches = classify(averages, self.num_classes, dtype=self.dtype, name="head_patches")
        show_heads(self, logits, of_patches)
        return logits


def average_patches(x: jax.Array, regions: jax.Array | None) -> jax.Array:
    """Patches [N, T, D] to averages by weights [R, rows, columns], [N, R, D]; None: of all, [N, D].

    What an average is divided by is larger than the sum of its weights by 1e-4, as in the official
    code: a region may be empty.
    """
    if regions is None:
        return x.mean(axis=1)
    weights = regions.reshape(len(regions), -1).astype(x.dtype)
    weights = weights / (weights.sum(axis=1, keepdims=True) + 1e-4)
    return jnp.einsum("rt,ntd->nrd", weights, x)

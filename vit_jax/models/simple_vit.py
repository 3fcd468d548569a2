"""SimpleViT: mean pooling, computed positions, no class token and no dropout.

Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k" (arXiv:2205.01580). Names of
parameters and initialisers are big_vision's. Sizes: `vit_jax.families.simple_vit`.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.block import google_block
from vit_jax.layers.encoder import Encoder
from vit_jax.layers.head import classify
from vit_jax.layers.patch import embed_patches
from vit_jax.layers.sincos import sincos2d
from vit_jax.layers.tokens import map_tokens


class SimpleViT(nn.Module):
    """Images [N, H, W, 3] in [-1, 1] to logits [N, num_classes], float32 or wider.

    No parameter depends on the image size.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patches: {'size': (height, width)} in pixels.
      hidden_size: D, the width of a token.
      transformer: Fields of `vit_jax.layers.encoder.Encoder`.
      representation_size: Width of a tanh layer before the head, which big_vision's recipe has and
        the paper has not; None for none.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patches: Mapping[str, Any]
    hidden_size: int
    transformer: Mapping[str, Any]
    representation_size: int | None = None
    dtype: Any = None
    encoder = Encoder

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = embed_patches(
            images, self.hidden_size, self.patches["size"], dtype=self.dtype, name="embedding"
        )
        x = map_tokens(x) + sincos2d((x.shape[1], x.shape[2]), self.hidden_size, dtype=x.dtype)
        fields = {"dtype": self.dtype, "block": google_block, **self.transformer}
        x = Encoder(name="Transformer", **fields)(x, train=train).mean(axis=1)
        if self.representation_size is not None:
            x = nn.tanh(nn.Dense(self.representation_size, dtype=self.dtype, name="pre_logits")(x))
        zeros = nn.initializers.zeros
        return classify(x, self.num_classes, kernel_init=zeros, dtype=self.dtype)

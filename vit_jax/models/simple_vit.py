"""SimpleViT: mean pooling, computed positions, no class token and no dropout.

Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k" (arXiv:2205.01580). Names of
parameters and initialisers are big_vision's. Sizes: `vit_jax.families.simple_vit`.
"""

from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.block import google_block
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.patch import PatchSize, embed_patches
from vit_jax.layers.sincos import sincos2d
from vit_jax.layers.tokens import map_tokens


class SimpleViT(ImageModel):
    """Images [N, H, W, 3] in [-1, 1] to logits [N, num_classes], float32 or wider.

    No parameter depends on the image size.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      representation_size: Width of a tanh layer before the head, which big_vision's recipe has and
        the paper has not; None for none.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    representation_size: int | None = None
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = embed_patches(
            images, self.hidden_size, self.patch_size, dtype=self.dtype, name="embedding"
        )
        x = map_tokens(x) + sincos2d((x.shape[1], x.shape[2]), self.hidden_size, dtype=x.dtype)
        x = encoder_of(self, block=google_block)(x, train=train).mean(axis=1)
        if self.representation_size is not None:
            x = nn.tanh(nn.Dense(self.representation_size, dtype=self.dtype, name="pre_logits")(x))
        zeros = nn.initializers.zeros
        return classify(x, self.num_classes, kernel_init=zeros, dtype=self.dtype)

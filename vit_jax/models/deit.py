"""DeiT, with and without a distillation token, DeiT III, and DINO.

Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention"
(arXiv:2012.12877), Touvron et al. 2022, "DeiT III: Revenge of the ViT" (arXiv:2204.07118), and
Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers" (arXiv:2104.14294).
Sizes: `vit_jax.families.deit`.
"""

import functools
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.block import vit_block
from vit_jax.layers.drop import LayerScale
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify, two_heads
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.patch import PatchSize
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.tokens import patch_tokens, prepend_tokens, show_patches


class DeiT(ImageModel):
    """A Vision Transformer with the erf form of GELU (arXiv:2012.12877, section 3).

    Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        embedded = patch_tokens(images, self.hidden_size, self.patch_size, dtype=self.dtype)
        x = prepend_tokens(self, embedded, "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        x = encoder_of(self)(x, train=train)
        show_patches(self, embedded, x[:, 1:])
        return classify(x[:, 0], self.num_classes, dtype=self.dtype)


class DINO(DeiT):
    """The same model, which learned without labels (Caron et al. 2021, arXiv:2104.14294).

    Its features are the class token after the last norm; positions are resized in a way of its own.

    Attributes: as in `DeiT`.
    """


class DistilledDeiT(DeiT):
    """DeiT with a second token and head, which learn from a teacher (ibid., section 4).

    Tokens stand in the order class, distillation, patches. It returns the mean of both heads'
    logits, or of the two features without classes, and shows both (`vit_jax.layers.head.HEADS`).

    Attributes: as in `DeiT`.
    """

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        embedded = patch_tokens(images, self.hidden_size, self.patch_size, dtype=self.dtype)
        x = prepend_tokens(self, embedded, "cls", "dist")
        x = AddPositionEmbs(name="posembed_input")(x)
        x = encoder_of(self)(x, train=train)
        show_patches(self, embedded, x[:, 2:])
        logits = classify(x[:, 0], self.num_classes, dtype=self.dtype)
        distilled = classify(x[:, 1], self.num_classes, dtype=self.dtype, name="head_dist")
        return two_heads(self, logits, distilled)


class DeiT3(DeiT):
    """DeiT with LayerScale and a class token that has no position (arXiv:2204.07118, section 3).

    Attributes: as in `DeiT`; and
      layer_scale_init: What each element of a branch's scale is at first.
    """

    layer_scale_init: float = 1e-6

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        embedded = patch_tokens(images, self.hidden_size, self.patch_size, dtype=self.dtype)
        x = AddPositionEmbs(name="posembed_input")(embedded)
        x = prepend_tokens(self, x, "cls")
        residual = functools.partial(LayerScale, self.layer_scale_init)
        block = functools.partial(vit_block, residual=residual)
        x = encoder_of(self, block=block)(x, train=train)
        show_patches(self, embedded, x[:, 1:])
        return classify(x[:, 0], self.num_classes, dtype=self.dtype)

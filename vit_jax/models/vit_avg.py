"""A Vision Transformer that averages its patches in the place of reading its class token.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377), appendix A.1:
so its encoders are fine-tuned, and so timm builds a ViT with `global_pool='avg'`. Assran et al.
2023, "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture" (I-JEPA,
arXiv:2301.08243): its encoders have no class token at all. Sizes: `vit_jax.families.vit_avg`.
"""

from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import LayerNorm, no_norm
from vit_jax.layers.patch import PatchSize
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.tokens import patch_tokens, prepend_tokens


class AveragingViT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    A class token takes part in attention, and is left out of the mean.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      norm_mean: Whether the mean is normalised (timm's `fc_norm`); else every token is, before.
      class_token: Whether there is one.
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
    norm_mean: bool = True
    class_token: bool = True
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = patch_tokens(images, self.hidden_size, self.patch_size, dtype=self.dtype)
        first = int(self.class_token)  # patch
        if self.class_token:
            x = prepend_tokens(self, x, "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        x = encoder_of(self, norm=no_norm if self.norm_mean else LayerNorm)(x, train=train)
        x = x[:, first:].mean(axis=1)
        if self.norm_mean:
            x = LayerNorm(dtype=self.dtype, name="fc_norm")(x)
        return classify(x, self.num_classes, dtype=self.dtype)

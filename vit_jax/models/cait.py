"""CaiT: deeper Transformers, and a class token that only the last layers see.

Touvron et al. 2021, "Going deeper with Image Transformers" (arXiv:2103.17239). Sizes:
`vit_jax.families.cait`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers import encoder as layers
from vit_jax.layers.block import Factory, torch_attention, torch_mlp
from vit_jax.layers.drop import LayerScale
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import normal_02
from vit_jax.layers.patch import PatchSize
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.talking_heads import TalkingHeadsAttention
from vit_jax.layers.tokens import patch_tokens


class ClassAttentionBlock(nn.Module):
    """The class token reads the patches, which stay as they are (ibid., section 3, Figure 2).

    Class token [N, 1, D] and patches [N, T, D] to class token [N, 1, D].

    Attributes: as in `vit_jax.layers.block.Block`; `attention` takes `queries`.
    """

    attention: Factory
    mlp: Factory
    norm: Factory
    residual: Factory

    @nn.compact
    def __call__(self, cls: jax.Array, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.norm(name="LayerNorm_0")(jnp.concatenate([cls, x], axis=1))
        y = self.attention(name="MultiHeadDotProductAttention_0")(y, queries=y[:, :1], train=train)
        # Stochastic depth is for the layers of the patches, as in the official code.
        cls = cls + self.residual(name="residual_0")(y, 0.0, train=train)
        y = self.norm(name="LayerNorm_1")(cls)
        y = self.mlp(name="MlpBlock_0")(y, train=train)
        return cls + self.residual(name="residual_1")(y, 0.0, train=train)


class Encoder(layers.Encoder):
    """Blocks of the patches [N, T, D], then those of the class token [1, 1, D]: [N, D].

    Attributes: as in `vit_jax.layers.encoder.Encoder`, for the blocks of the patches, whose heads
      talk; and
      drop_path_rate: Stochastic depth, the same in every block of the patches (ibid., section 5.1).
      num_class_layers: Class-attention blocks behind the `num_layers` blocks of the patches.
      layer_scale_init: What each element of a branch's scale is at first.
    """

    num_class_layers: int = 2
    layer_scale_init: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, cls: jax.Array, *, train: bool) -> jax.Array:
        norm = functools.partial(self.norm, dtype=self.dtype)
        x = self.run(x, train)
        cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        fields: dict[str, Any] = {"dropout_rate": self.dropout_rate, "dtype": self.dtype}
        for i in range(self.num_class_layers):
            cls = ClassAttentionBlock(
                attention=torch_attention(self.num_heads, **fields),
                mlp=torch_mlp(self.mlp_dim, **fields),
                norm=norm,
                residual=self.residual(),
                name=f"classblock_{i}",
            )(cls, x, train=train)
        return norm(name="encoder_norm")(cls[:, 0])

    def make_block(self) -> Factory:
        talking = {"attention": TalkingHeadsAttention, "residual": self.residual()}
        return super().make_block(**talking)

    def residual(self) -> Factory:
        return functools.partial(LayerScale, self.layer_scale_init)

    def drop_path_rates(self) -> Sequence[float]:
        return (self.drop_path_rate,) * self.num_layers


class CaiT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      num_layers, num_class_layers, num_heads, mlp_dim, layer_scale_init, dropout_rate,
        attention_dropout_rate, drop_path_rate, remat, scan: As in `Encoder`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    num_class_layers: int = 2
    layer_scale_init: float = 1e-5
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = patch_tokens(images, self.hidden_size, self.patch_size, dtype=self.dtype)
        x = AddPositionEmbs(name="posembed_input")(x)
        cls = self.param("cls", normal_02, (1, 1, self.hidden_size))
        x = encoder_of(self, Encoder)(x, cls, train=train)
        return classify(x, self.num_classes, dtype=self.dtype)

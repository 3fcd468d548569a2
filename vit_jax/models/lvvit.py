"""LV-ViT: a deeper stem, damped residuals, and a head for every token.

Jiang et al. 2021, "All Tokens Matter: Token Labeling for Training Better Vision Transformers"
(arXiv:2104.10858). Sizes: `vit_jax.families.lvvit`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.block import vit_block
from vit_jax.layers.conv import conv_norm
from vit_jax.layers.drop import DropPath
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify, show_heads
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.patch import PatchSize, embed_patches, sides
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.tokens import map_tokens, prepend_tokens


class Stem(nn.Module):
    """Three convolutions, the first of which halves the sides: [N, H, W, 3] -> [N, H/2, W/2, C].

    Attributes:
      features: C, of all three.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, (kernel, stride) in enumerate(((7, 2), (3, 1), (3, 1))):
            x = conv_norm(
                self.features,
                kernel,
                stride=stride,
                activation=nn.relu,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x, train=train)
        return x


class Damped(nn.Module):
    """A residual branch over a constant (ibid., section 3.1).

    Attributes:
      divisor: λ. Branches of a deep model add up to less when it is larger than 1.
    """

    divisor: float

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, *, train: bool) -> jax.Array:
        return DropPath(name="DropPath_0")(x, rate, train=train) / self.divisor


class LVViT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    They are the class token's plus half of the maximum of the patches' over the patches. It shows
    both (`vit_jax.layers.head.HEADS`): [N, num_classes] and [N, T, num_classes].

    Attributes:
      num_classes: 0 returns the same of the features [N, D] that the heads would get.
      patch_size: In pixels: the side of a square, or (height, width); even, as the stem
        halves it.
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      residual_divisor: As in `Damped`.
      stem_features: Channels of the stem.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    residual_divisor: float = 1.0
    stem_features: int = 64
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, mix: jax.Array | None = None
    ) -> jax.Array:
        """`mix` [rows, columns] of booleans marks patches to take from another image (MixToken,
        ibid., section 3.3): image i of N shows those of image N - 1 - i there, and their logits are
        given where they came from.
        """
        x = Stem(self.stem_features, dtype=self.dtype, name="stem")(images, train=train)
        height, width = sides(self.patch_size)
        half = (height // 2, width // 2)
        x = embed_patches(x, self.hidden_size, half, dtype=self.dtype, name="embedding")
        x = _exchange(map_tokens(x), mix)
        x = prepend_tokens(self, x, "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        block = functools.partial(
            vit_block,
            norm=LayerNorm5,
            residual=functools.partial(Damped, self.residual_divisor),
            qkv_bias=False,
        )
        x = encoder_of(self, block=block, norm=LayerNorm5)(x, train=train)
        logits = classify(x[:, 0], self.num_classes, dtype=self.dtype)
        of_tokens = classify(x[:, 1:], self.num_classes, dtype=self.dtype, name="head_tokens")
        of_tokens = _exchange(of_tokens, mix)
        show_heads(self, logits, of_tokens)
        return logits + jnp.max(of_tokens, axis=1) / 2


def _exchange(x: jax.Array, mix: jax.Array | None) -> jax.Array:
    """Tokens [N, T, D] of the batch read backwards where `mix` [rows, columns] is true."""
    return x if mix is None else jnp.where(mix.reshape(1, -1, 1), x[::-1], x)

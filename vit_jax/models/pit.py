"""PiT: a Transformer that pools its map of tokens between stages.

Heo et al. 2021, "Rethinking Spatial Dimensions of Vision Transformers" (arXiv:2103.16302).
Sizes: `vit_jax.families.pit`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.block import run_blocks, vit_block
from vit_jax.layers.conv import conv
from vit_jax.layers.drop import stage_drop_path_rates
from vit_jax.layers.head import classify, two_heads
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import torch_default
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch import embed_patches
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.stages import show_map
from vit_jax.layers.tokens import prepend_tokens

_MLP_RATIO = 4


class Pooling(nn.Module):
    """Half the rows and columns, rounded up, and more channels (ibid., Figure 3b).

    A depthwise convolution makes several channels of each; the class tokens, which have no place
    on the map, get a linear layer. [N, H, W, D] and [N, P, D] -> [N, H/2, W/2, D'] and [N, P, D'].
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        groups = x.shape[-1]
        x = conv(self.features, 3, stride=2, groups=groups, dtype=self.dtype, name="conv")(x)
        project = nn.Dense(
            self.features, kernel_init=torch_default, dtype=self.dtype, name="tokens"
        )
        return x, project(tokens)


class Stage(nn.Module):
    """Blocks of ViT over class tokens [N, P, D] and the tokens of a map [N, H, W, D].

    Attributes:
      drop_path_rates: A rate for each block.
      remat: As in `run_blocks`.
    """

    num_heads: int
    drop_path_rates: Sequence[float]
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array, *, train: bool):
        shape, num_tokens = x.shape, tokens.shape[1]
        x = jnp.concatenate([tokens, x.reshape(shape[0], -1, shape[-1])], axis=1)
        x = run_blocks(
            vit_block(self.num_heads, _MLP_RATIO * shape[-1], dtype=self.dtype),
            x,
            depth=len(self.drop_path_rates),
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rates,
            remat=self.remat,
        )
        return x[:, num_tokens:].reshape(shape), x[:, :num_tokens]


class PiT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    The position embedding is a map that has the size of the image; class tokens have no position.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size, stride: Side of the overlapping patches and their distance, in pixels.
      hidden_sizes, num_heads, depths: A value for each stage.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: int
    stride: int
    hidden_sizes: Sequence[int]
    num_heads: Sequence[int]
    depths: Sequence[int]
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        (features,) = self._features(images, "cls", train=train)
        return classify(features, self.num_classes, dtype=self.dtype)

    def _features(self, images: jax.Array, *names: str, train: bool) -> list[jax.Array]:
        """The class tokens [N, D] of these names, after the final norm."""
        patch = (self.patch_size, self.patch_size)
        width = self.hidden_sizes[0]
        x = embed_patches(
            images, width, patch, stride=self.stride, dtype=self.dtype, name="embedding"
        )
        x = AddPositionEmbs(name="posembed_input")(x)
        tokens = prepend_tokens(self, jnp.zeros((x.shape[0], 0, width), x.dtype), *names)
        rates = stage_drop_path_rates(self.drop_path_rate, self.depths)
        for i, (width, heads) in enumerate(zip(self.hidden_sizes, self.num_heads, strict=True)):
            if i > 0:
                x, tokens = Pooling(width, dtype=self.dtype, name=f"pool_{i}")(x, tokens)
            stage = Stage(heads, rates[i], self.remat, dtype=self.dtype, name=f"stage_{i}")
            x, tokens = stage(x, tokens, train=train)
            show_map(self, i, x)
        tokens = LayerNorm(dtype=self.dtype, name="encoder_norm")(tokens)
        return [tokens[:, i] for i in range(len(names))]


class DistilledPiT(PiT):
    """PiT with a second token and head, which learn from a teacher (ibid., section 4.1).

    It returns the mean of both heads' logits, or of the two features without classes, and shows
    both (`vit_jax.layers.head.HEADS`).

    Attributes: as in `PiT`.
    """

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        features, distilled = self._features(images, "cls", "dist", train=train)
        logits = classify(features, self.num_classes, dtype=self.dtype)
        distilled = classify(distilled, self.num_classes, dtype=self.dtype, name="head_dist")
        return two_heads(self, logits, distilled)

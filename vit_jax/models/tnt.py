"""TNT: a small Transformer over the pixels of each patch inside a Transformer over patches.

Han et al. 2021, "Transformer in Transformer" (arXiv:2103.00112). Sizes:
`vit_jax.families.tnt`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.block import Factory, run_blocks, vit_block
from vit_jax.layers.conv import conv
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import normal_02
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.patch import split_patches
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.tokens import prepend_tokens

_PIXEL_STRIDE = 4
_MLP_RATIO = 4


class PatchFromPixels(nn.Module):
    """The pixels of a patch as one token: [N · P, M, c] -> [N, P, features], for N examples."""

    features: int
    use_bias: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, pixels: jax.Array, num_examples: int) -> jax.Array:
        x = pixels.reshape(num_examples, -1, pixels.shape[1] * pixels.shape[2])
        x = LayerNorm5(dtype=self.dtype, name="LayerNorm_0")(x)
        x = nn.Dense(
            self.features,
            use_bias=self.use_bias,
            kernel_init=normal_02,
            dtype=self.dtype,
            name="dense",
        )(x)
        return LayerNorm5(dtype=self.dtype, name="LayerNorm_1")(x)


class Block(nn.Module):
    """Pixels [N · P, M, c] and tokens [N, 1 + P, D], class token first, to the same (ibid., eq. 7).

    Attributes:
      inner, outer: Blocks over pixels and over patches. Stochastic depth drops the former patch by
        patch.
    """

    inner: Factory
    outer: Factory
    dtype: Any = None

    @nn.compact
    def __call__(self, x: tuple[jax.Array, jax.Array], drop_path_rate, *, train: bool):
        pixels, tokens = x
        pixels = self.inner(name="inner")(pixels, drop_path_rate, train=train)
        n, _, width = tokens.shape
        update = PatchFromPixels(width, use_bias=False, dtype=self.dtype, name="project")(pixels, n)
        tokens = tokens + jnp.pad(update, ((0, 0), (1, 0), (0, 0)))  # the class has no pixels
        return pixels, self.outer(name="outer")(tokens, drop_path_rate, train=train)


class TNT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels of the image; a 'pixel' of the model stands for 4×4 of them.
      hidden_size, num_heads: Width of a token and heads in the Transformer over patches.
      inner_size, inner_heads: The same in the one over pixels.
      num_layers: Blocks of both.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: int
    hidden_size: int
    num_heads: int
    inner_size: int
    inner_heads: int
    num_layers: int
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        n = images.shape[0]
        pixels = self._pixels(images)
        width, dtype = self.hidden_size, self.dtype
        tokens = PatchFromPixels(width, use_bias=True, dtype=dtype, name="project")(pixels, n)
        tokens = prepend_tokens(self, tokens, "cls")
        tokens = AddPositionEmbs(name="posembed_input")(tokens)

        def transformer(width: int, num_heads: int) -> Factory:
            mlp_dim = _MLP_RATIO * width
            return vit_block(num_heads, mlp_dim, norm=LayerNorm5, qkv_bias=False, dtype=dtype)

        inner = transformer(self.inner_size, self.inner_heads)
        outer = transformer(width, self.num_heads)

        def block(*, name: str) -> Block:
            return Block(inner, outer, dtype=dtype, name=name)

        _, tokens = run_blocks(
            block,
            (pixels, tokens),
            depth=self.num_layers,
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
        )
        x = LayerNorm5(dtype=dtype, name="encoder_norm")(tokens)
        return classify(x[:, 0], self.num_classes, dtype=dtype)

    def _pixels(self, images: jax.Array) -> jax.Array:
        """[N, H, W, 3] -> [N · P, M, c].

        Patches are cut out before the convolution, which so sees zeros beyond their edges.
        """
        patch = (self.patch_size, self.patch_size)
        x = split_patches(images, patch).reshape(-1, *patch, images.shape[-1])
        x = conv(
            self.inner_size, 7, stride=_PIXEL_STRIDE, padding=3, dtype=self.dtype, name="embedding"
        )(x)
        x = AddPositionEmbs(name="posembed_pixels")(x)
        return x.reshape(x.shape[0], -1, x.shape[-1])

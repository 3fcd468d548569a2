"""Masked autoencoder: an encoder of the few patches that it sees, and a decoder of the others.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377), section 3.
The encoder alone is DeiT's class, and with a mean over its patches that of `vit_avg`. Sizes:
`vit_jax.families.mae`; what is removed and learned: `vit_jax.train.masked_autoencoder`.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import Block, Factory
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import normal_02, xavier_patches, xavier_qkv
from vit_jax.layers.masking import put_back
from vit_jax.layers.mlp import MlpBlock, exact_gelu
from vit_jax.layers.norm import CentredLayerNorm
from vit_jax.layers.patch import PatchSize, sides
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.precision import widened
from vit_jax.layers.sincos import sincos2d
from vit_jax.layers.tokens import patch_tokens, prepend_tokens

_xavier = nn.initializers.xavier_uniform()


def positions_of(grid: tuple[int, int], width: int) -> np.ndarray:
    """The fixed table [1, 1 + rows * columns, width]: sines and cosines, zeros for the class token.

    Ibid., appendix A.1: "sine-cosine", the column before the row as in the official code.

    Raises:
      UserError: for a width that is no multiple of 4, or below 8.
    """
    table = sincos2d(grid, width, endpoint=False)
    return np.pad(table, ((0, 0), (1, 0), (0, 0)))


def _fixed_positions(grid: tuple[int, int]) -> AddPositionEmbs:
    def table(_: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(positions_of(grid, shape[-1]))

    return AddPositionEmbs(table, frozen=True, name="posembed_input")


def _block(
    num_heads: int,
    mlp_dim: int,
    *,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    dtype: Any = None,
) -> Factory:
    """The plain block with the erf form of GELU, as the official code initialises it."""
    return functools.partial(
        Block,
        attention=functools.partial(
            MultiHeadDotProductAttention,
            num_heads,
            dropout_rate=attention_dropout_rate,
            out_dropout_rate=dropout_rate,
            qkv_init=xavier_qkv,
            dtype=dtype,
        ),
        mlp=functools.partial(
            MlpBlock,
            mlp_dim,
            dropout_rate=dropout_rate,
            activation=exact_gelu,
            bias_init=nn.initializers.zeros,
            dtype=dtype,
        ),
        norm=functools.partial(CentredLayerNorm, dtype=dtype),
    )


class MaskedEncoder(nn.Module):
    """Images [N, H, W, C] and kept patches [N, K] to class token and these, [N, 1 + K, D].

    Its parameters are those of DeiT without a head. Attributes: as of `MaskedAutoencoder`.
    """

    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, kept: jax.Array, *, train: bool) -> jax.Array:
        x = patch_tokens(
            images, self.hidden_size, self.patch_size, kernel_init=xavier_patches, dtype=self.dtype
        )
        x = prepend_tokens(self, x, "cls")
        x = _fixed_positions(grid_of(images, self.patch_size))(x)
        seen = jnp.take_along_axis(x[:, 1:], kept[..., None], axis=1)
        x = jnp.concatenate([x[:, :1], seen], axis=1)
        return encoder_of(self, block=_block, norm=CentredLayerNorm)(x, train=train)


class PixelDecoder(nn.Module):
    """Class token and kept patches [N, 1 + K, D] to pixels of all patches, [N, T, outputs].

    The removed ones come in as one learned token, `mask_token`, at their positions.

    Attributes:
      outputs: Numbers that are predicted for a patch.
      hidden_size: Width of a token here; others as of `MaskedAutoencoder`.
    """

    outputs: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, kept: jax.Array, grid: tuple[int, int], *, train: bool
    ) -> jax.Array:
        dense = functools.partial(nn.Dense, kernel_init=_xavier, dtype=self.dtype)
        x = dense(self.hidden_size, name="embedding")(x)
        token = self.param("mask_token", normal_02, (1, 1, self.hidden_size))
        patches = put_back(x[:, 1:], kept, token, math.prod(grid))
        x = _fixed_positions(grid)(jnp.concatenate([x[:, :1], patches], axis=1))
        x = encoder_of(self, block=_block, norm=CentredLayerNorm)(x, train=train)
        return dense(self.outputs, name="pixels")(x)[:, 1:]


class MaskedAutoencoder(ImageModel):
    """Images [N, H, W, C], and the patches to look at [N, K], to pixels of all patches [N, T, P].

    P = height · width · C of a patch, in the order row, column, channel; float32 or wider.

    Attributes:
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token of the encoder.
      num_layers, num_heads, mlp_dim: Of the encoder.
      decoder: `hidden_size`, `num_layers`, `num_heads` and `mlp_dim` of the decoder.
      remat, scan: Of both, as in `vit_jax.layers.encoder.Encoder`.
      dtype: Type to compute in; None follows images and parameters.
    """

    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    decoder: Mapping[str, Any]
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, kept: jax.Array, *, train: bool) -> jax.Array:
        """`kept` are numbers of patches, counted row by row, in the order that the encoder gets."""
        how: dict[str, Any] = {"remat": self.remat, "scan": self.scan, "dtype": self.dtype}
        encoder = MaskedEncoder(
            self.patch_size,
            self.hidden_size,
            self.num_layers,
            self.num_heads,
            self.mlp_dim,
            name="encoder",
            **how,
        )
        outputs = math.prod(sides(self.patch_size)) * images.shape[-1]
        decoder = PixelDecoder(outputs, **self.decoder, name="decoder", **how)
        x = encoder(images, kept, train=train)
        return widened(decoder(x, kept, grid_of(images, self.patch_size), train=train))


def grid_of(images: jax.Array, patch_size: PatchSize) -> tuple[int, int]:
    """(rows, columns) of the whole patches of images [N, H, W, C]."""
    height, width = sides(patch_size)
    return images.shape[1] // height, images.shape[2] // width

"""CrossViT: two Vision Transformers over patches of two sizes, whose class tokens cross over.

Chen et al. 2021, "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image
Classification" (arXiv:2103.14899). Sizes: `vit_jax.families.crossvit`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.layers.block import run_blocks, torch_attention, vit_block
from vit_jax.layers.conv import conv
from vit_jax.layers.drop import DropPath, stage_drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import normal_02
from vit_jax.layers.interpolation import half_pixel_weights, torch_bicubic
from vit_jax.layers.mlp import exact_gelu
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch import embed_patches
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.stages import show_map
from vit_jax.layers.tokens import map_tokens, prepend_tokens

# Kernel, stride and padding of the three convolutions that stand for a patch (ibid., section 4.1,
# the models with a dagger).
_CONVOLUTIONS = {
    12: ((7, 4, 3), (3, 3, 0), (3, 1, 1)),
    16: ((7, 4, 3), (3, 2, 1), (3, 2, 1)),
}


class ConvEmbedding(nn.Module):
    """Three convolutions in place of one linear layer a patch: [N, H, W, 3] -> [N, H/p, W/p, D].

    Raises:
      UserError: for a patch size that the paper has none for.
    """

    features: int
    patch_size: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.patch_size not in _CONVOLUTIONS:
            raise UserError(
                f"convolutions make patches of {sorted(_CONVOLUTIONS)} pixels, not of "
                f"{self.patch_size}: set conv_embedding=False"
            )
        for i, (kernel, stride, padding) in enumerate(_CONVOLUTIONS[self.patch_size]):
            layer = conv(
                self.features // (4, 2, 1)[i],
                kernel,
                stride=stride,
                padding=padding,
                dtype=self.dtype,
                name=f"conv_{i}",
            )
            x = layer(nn.relu(x) if i > 0 else x)
        return x


class Project(nn.Module):
    """LayerNorm, GELU, linear layer: [N, 1, D] -> [N, 1, features] (ibid., equation 2: f and g)."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = exact_gelu(LayerNorm(dtype=self.dtype, name="norm")(x))
        return nn.Dense(self.features, kernel_init=normal_02, dtype=self.dtype, name="dense")(x)


class CrossAttention(nn.Module):
    """The class token [N, 1, D] looks at itself and patches [N, T, D] (ibid., equations 3, 4)."""

    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, token: jax.Array, patches: jax.Array, drop_path_rate: float, *, train: bool
    ) -> jax.Array:
        x = jnp.concatenate([token, patches], axis=1)
        x = LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x)
        attention = torch_attention(self.num_heads, dtype=self.dtype)
        y = attention(name="MultiHeadDotProductAttention_0")(x, train=train, queries=x[:, :1])
        return token + DropPath(name="residual_0")(y, drop_path_rate, train=train)


class MultiScaleEncoder(nn.Module):
    """Blocks in each branch, then each class token looks at the other branch's patches.

    Tokens [N, 1 + T, D] of every branch, to the same.

    Attributes:
      num_heads, mlp_ratios, depths: A value for each branch.
      drop_path_rates: A rate for each block of the deepest branch; the fusion has the last one too.
    """

    num_heads: Sequence[int]
    mlp_ratios: Sequence[int]
    depths: Sequence[int]
    drop_path_rates: Sequence[float]
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, branches: list[jax.Array], *, train: bool) -> list[jax.Array]:
        branches = [self._branch(i, x, train) for i, x in enumerate(branches)]
        return [self._fuse(i, branches, train) for i in range(len(branches))]

    def _branch(self, i: int, x: jax.Array, train: bool) -> jax.Array:
        mlp_dim = self.mlp_ratios[i] * x.shape[-1]
        return run_blocks(
            vit_block(self.num_heads[i], mlp_dim, dtype=self.dtype),
            x,
            depth=self.depths[i],
            name=f"branch_{i}_block",
            train=train,
            drop_path_rate=self.drop_path_rates[: self.depths[i]],
            remat=self.remat,
        )

    def _fuse(self, i: int, branches: list[jax.Array], train: bool) -> jax.Array:
        own, other = branches[i], branches[i - 1]
        token = Project(other.shape[-1], self.dtype, name=f"project_{i}")(own[:, :1])
        # The attention has as many heads as the branch whose tokens it looks at.
        fusion = CrossAttention(self.num_heads[i - 1], self.dtype, name=f"fusion_{i}")
        token = fusion(token, other[:, 1:], self.drop_path_rates[-1], train=train)
        token = Project(own.shape[-1], self.dtype, name=f"revert_{i}")(token)
        return jnp.concatenate([token, own[:, 1:]], axis=1)


class CrossViT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider: the mean over branches.

    Attributes:
      num_classes: 0 returns the features [N, D₀ + D₁] that the heads would get.
      patch_sizes, image_scales: A value for each of the two branches; it sees the image resized by
        its scale (bicubic, PyTorch's), rounded down.
      hidden_sizes, num_heads, mlp_ratios: A value for each branch.
      depths: Blocks of each branch in each encoder.
      conv_embedding: Patches by `ConvEmbedding` (the models with a dagger).
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_sizes: Sequence[int]
    image_scales: Sequence[float]
    hidden_sizes: Sequence[int]
    num_heads: Sequence[int]
    mlp_ratios: Sequence[int]
    depths: Sequence[Sequence[int]]
    conv_embedding: bool = False
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        maps = [self._embed(i, images) for i in range(len(self.patch_sizes))]
        branches = [self._tokens(i, x) for i, x in enumerate(maps)]
        rates = stage_drop_path_rates(self.drop_path_rate, [max(d) for d in self.depths])
        for k, depths in enumerate(self.depths):
            encoder = MultiScaleEncoder(
                self.num_heads,
                self.mlp_ratios,
                depths,
                rates[k],
                self.remat,
                self.dtype,
                name=f"encoder_{k}",
            )
            branches = encoder(branches, train=train)
        for i, x in enumerate(branches):
            show_map(self, i, x[:, 1:].reshape(maps[i].shape))
        features = [
            LayerNorm(dtype=self.dtype, name=f"encoder_norm_{i}")(x)[:, 0]
            for i, x in enumerate(branches)
        ]
        if not self.num_classes:
            return classify(jnp.concatenate(features, axis=-1), 0)
        logits = [
            classify(x, self.num_classes, dtype=self.dtype, name=f"head_{i}")
            for i, x in enumerate(features)
        ]
        return sum(logits[1:], logits[0]) / len(logits)

    def _embed(self, i: int, images: jax.Array) -> jax.Array:
        """[N, H, W, 3] -> [N, H'/p, W'/p, D] of branch i."""
        height, width = images.shape[1:3]
        scale, patch, features = self.image_scales[i], self.patch_sizes[i], self.hidden_sizes[i]
        x = resize_bicubic(images, (int(height * scale), int(width * scale)))
        name = f"embedding_{i}"
        if self.conv_embedding:
            return ConvEmbedding(features, patch, self.dtype, name=name)(x)
        return embed_patches(x, features, (patch, patch), dtype=self.dtype, name=name)

    def _tokens(self, i: int, x: jax.Array) -> jax.Array:
        """[N, H, W, D] -> [N, 1 + H · W, D], with a class token and positions."""
        x = prepend_tokens(self, map_tokens(x), f"cls_{i}")
        return AddPositionEmbs(name=f"posembed_{i}")(x)


def resize_bicubic(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[N, H, W, C] -> [N, *size, C] as `torch.nn.functional.interpolate(mode='bicubic')` does.

    JAX's own cubic has another constant (a = -0.5) and antialiases: logits differ by a third of
    their spread.
    """
    old = images.shape[1:3]
    if tuple(old) == tuple(size):
        return images
    rows, columns = (
        jnp.asarray(half_pixel_weights(n, m, torch_bicubic), images.dtype)
        for n, m in zip(old, size, strict=True)
    )
    return jnp.einsum("ij,njkc,lk->nilc", rows, images, columns, precision="highest")

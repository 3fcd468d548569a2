"""LeViT: a Transformer with the habits of a convolutional network.

Graham et al. 2021, "LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference"
(arXiv:2104.01136). Sizes: `vit_jax.families.levit`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vit_jax.layers.attention import attend, shown_by
from vit_jax.layers.block import Block, run_blocks
from vit_jax.layers.conv import conv_norm, dense_norm
from vit_jax.layers.drop import DropPath
from vit_jax.layers.head import classify, two_heads
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import BatchNorm
from vit_jax.layers.stages import show_map

_VALUE_RATIO = 2  # width of a value in keys; in `DownsampleAttention` twice that
_MLP_RATIO = 2


class Attention(nn.Module):
    """Self-attention with a bias for each offset (ibid., section 4.3): [N, H, W, D], same out.

    Query, key and value come from one layer, `qkv`, as one batch normalisation follows it: for
    each head its query, its key and its value, which is wider.
    """

    num_heads: int
    key_dim: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        widths = (self.key_dim, self.key_dim, _VALUE_RATIO * self.key_dim)
        width = self.num_heads * sum(widths)
        y = dense_norm(width, mark="qkv", dtype=self.dtype, name="qkv")(x, train=train)
        q, k, v = _split_heads(y, self.num_heads, widths)
        bias = _offset_biases(self, self.num_heads, x.shape[1:3])
        y = attend(q, k, v, bias=bias, look=shown_by(self))
        y = checkpoint_name(y, "attention")
        y = nn.hard_swish(y.reshape(*x.shape[:3], -1))
        # A block starts as the identity.
        zeros = nn.initializers.zeros
        out = dense_norm(x.shape[-1], scale_init=zeros, dtype=self.dtype, name="out")
        return out(y, train=train)


class DownsampleAttention(nn.Module):
    """Attention whose queries are every other row and column: [N, H, W, D] -> [N, H/2, W/2, D'].

    The halves are rounded up. Ibid., section 4.2, "shrinking attention".
    """

    features: int
    num_heads: int
    key_dim: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        widths = (self.key_dim, 2 * _VALUE_RATIO * self.key_dim)
        y = dense_norm(self.num_heads * sum(widths), dtype=self.dtype, name="kv")(x, train=train)
        k, v = _split_heads(y, self.num_heads, widths)
        y = x[:, ::2, ::2]
        size = y.shape[:3]
        q_width = self.num_heads * self.key_dim
        y = dense_norm(q_width, dtype=self.dtype, name="query")(y, train=train)
        (q,) = _split_heads(y, self.num_heads, (self.key_dim,))
        bias = _offset_biases(self, self.num_heads, x.shape[1:3], stride=2)
        y = attend(q, k, v, bias=bias, look=shown_by(self))
        y = nn.hard_swish(y.reshape(*size, -1))
        return dense_norm(self.features, dtype=self.dtype, name="out")(y, train=train)


class NormMlp(nn.Module):
    """The MLP of LeViT, batch normalisation after each layer: [N, H, W, D], same out."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        first = dense_norm(_MLP_RATIO * width, mark="mlp", dtype=self.dtype, name="Dense_0")
        y = first(x, train=train)
        last = dense_norm(width, scale_init=nn.initializers.zeros, dtype=self.dtype, name="Dense_1")
        return last(nn.hard_swish(y), train=train)


class NoNorm(nn.Module):
    """Nothing: LeViT's blocks normalise behind each layer, not before a branch."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class Stage(nn.Module):
    """Shrinking attention where `downsample` says so, then blocks: [N, H, W, D] -> [N, H', W', D'].

    Attributes:
      drop_path_rate: The same for every block: it does not grow.
    """

    features: int
    num_heads: int
    key_dim: int
    depth: int
    downsample: bool
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        attention = {"key_dim": self.key_dim, "dtype": self.dtype}
        mlp = functools.partial(NormMlp, dtype=self.dtype)
        if self.downsample:
            heads = x.shape[-1] // self.key_dim
            shrink = DownsampleAttention(self.features, heads, name="downsample", **attention)
            x = shrink(x, train=train)
            y = mlp(name="downsample_mlp")(x, train=train)
            x = x + DropPath(name="downsample_residual")(y, self.drop_path_rate, train=train)
        block = functools.partial(
            Block,
            attention=functools.partial(Attention, self.num_heads, **attention),
            mlp=mlp,
            norm=NoNorm,
        )
        return run_blocks(
            block,
            x,
            depth=self.depth,
            name="encoderblock",
            train=train,
            drop_path_rate=[self.drop_path_rate] * self.depth,
            remat=self.remat,
        )


class LeViT(ImageModel):
    """Four convolutions, three stages, two heads, of which one learns from a teacher.

    Images [N, H, W, 3] to logits [N, num_classes], float32 or wider: the mean of both heads, which
    it shows (`vit_jax.layers.head.HEADS`). The tables of attention biases have the size of the
    image.

    Attributes:
      num_classes: 0 returns the features [N, D] that the heads would get.
      hidden_sizes, num_heads, depths: A value for each stage.
      key_dim: Width of a key.
      drop_path_rate: Stochastic depth, the same in all blocks; the paper has 0.1 in LeViT-384.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    hidden_sizes: Sequence[int]
    num_heads: Sequence[int]
    depths: Sequence[int]
    key_dim: int
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self._stem(images, train)
        sizes = zip(self.hidden_sizes, self.num_heads, self.depths, strict=True)
        for i, (width, heads, depth) in enumerate(sizes):
            stage = Stage(
                width,
                heads,
                self.key_dim,
                depth,
                downsample=i > 0,
                drop_path_rate=self.drop_path_rate,
                remat=self.remat,
                dtype=self.dtype,
                name=f"stage_{i}",
            )
            x = stage(x, train=train)
            show_map(self, i, x)
        x = x.mean((1, 2))
        if not self.num_classes:
            return classify(x, 0)
        logits, distilled = (self._classify(x, name, train) for name in ("head", "head_dist"))
        return two_heads(self, logits, distilled)

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, H/16, W/16, D], rounded up."""
        for i, shrunk in enumerate((8, 4, 2, 1)):
            activation = nn.hard_swish if shrunk > 1 else None
            features = self.hidden_sizes[0] // shrunk
            layer = conv_norm(
                features, 3, 2, activation=activation, dtype=self.dtype, name=f"stem_{i}"
            )
            x = layer(x, train=train)
        return x

    def _classify(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        norm = BatchNorm(use_running_average=not train, dtype=self.dtype, name=f"{name}_norm")
        return classify(norm(x), self.num_classes, dtype=self.dtype, name=name)


class LeViTConv(LeViT):
    """The same function; its released weights are those of 1×1 convolutions (`levit_conv_*`)."""


def _split_heads(x: jax.Array, num_heads: int, widths: Sequence[int]) -> list[jax.Array]:
    """[N, H, W, heads · sum(widths)] -> [N, H · W, heads, width] for each width."""
    x = x.reshape(x.shape[0], -1, num_heads, sum(widths))
    return jnp.split(x, np.cumsum(widths)[:-1], axis=-1)


def _offset_biases(
    module: nn.Module, num_heads: int, size: Sequence[int], stride: int = 1
) -> jax.Array:
    """[1, heads, queries, keys]: a number for each head and distance in rows and columns.

    To be called in a compact method: `module` gets a table `attention_biases` [heads, H · W].
    """
    height, width = size
    table = module.param("attention_biases", nn.initializers.zeros, (num_heads, height * width))
    rows, columns = np.indices((height, width))
    queries = (slice(None, None, stride),) * 2

    def distances(x: np.ndarray) -> np.ndarray:
        return abs(x[queries].reshape(-1, 1) - x.reshape(1, -1))

    return table[:, distances(rows) * width + distances(columns)][None]

"""BoTNet: a ResNet in which attention stands for some of the 3×3 convolutions.

Srinivas et al. 2021, "Bottleneck Transformers for Visual Recognition" (arXiv:2101.11605), in
timm's form: small stem, attention in earlier stages too. Sizes: `vit_jax.families.botnet`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError
from vit_jax.layers.attention import attend
from vit_jax.layers.block import Factory
from vit_jax.layers.conv import average_pool, conv_norm, max_pool
from vit_jax.layers.drop import DropPath, stage_drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import BatchNorm
from vit_jax.layers.stages import Stage, run_stages, show_map

ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}
_STEM = (24, 32, 64)  # channels
_BOTTLENECK = 4  # a unit's channels are so many times those inside


class BottleneckAttention(nn.Module):
    """All-to-all attention over a map with relative positions: [N, H, W, D], same out.

    Ibid., Figure 4. The position of a key relative to a query is a learned vector for its distance
    in rows plus one for that in columns, `row_offsets` [2H - 1, d] and `column_offsets`
    [2W - 1, d], which all heads share; the query's product with it is added to the score.

    Attributes:
      scale_positions: Whether 1 / √d scales this product too, as in the code of the paper's
        authors; timm's released weights have it unscaled.
    """

    num_heads: int = 4
    scale_positions: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, features = x.shape
        if features % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} does not divide the width {features}")
        head_dim = features // self.num_heads
        project = functools.partial(
            nn.DenseGeneral,
            (self.num_heads, head_dim),
            use_bias=False,
            kernel_init=nn.initializers.normal(features**-0.5),
            dtype=self.dtype,
        )
        names = ("query", "key", "value")
        q, k, v = (checkpoint_name(project(name=name)(x), "qkv") for name in names)
        positions = self._position_scores(q * head_dim**-0.5 if self.scale_positions else q)
        q, k, v = (y.reshape(n, height * width, self.num_heads, head_dim) for y in (q, k, v))
        y = checkpoint_name(attend(q, k, v, bias=positions), "attention")
        return y.reshape(x.shape)

    def _position_scores(self, q: jax.Array) -> jax.Array:
        """Queries [N, H, W, heads, d] -> [N, heads, H · W, H · W]."""
        n, height, width, heads, _ = q.shape
        rows = self._offsets("row_offsets", height, q)
        columns = self._offsets("column_offsets", width, q)
        by_row = jnp.einsum("nyxhd,ykd->nhyxk", q, rows)[..., :, None]
        by_column = jnp.einsum("nyxhd,xkd->nhyxk", q, columns)[..., None, :]
        return (by_row + by_column).reshape(n, heads, height * width, height * width)

    def _offsets(self, name: str, size: int, q: jax.Array) -> jax.Array:
        """[queries, keys, d] along one axis of the map."""
        init = nn.initializers.normal(q.shape[-1] ** -0.5)
        table = self.param(name, init, (2 * size - 1, q.shape[-1]))
        cells = np.arange(size)
        return table[cells[None, :] - cells[:, None] + size - 1].astype(q.dtype)


class AttentionNorm(nn.Module):
    """Attention where `conv_norm` would stand: [N, H, W, D] -> [N, H / stride, W / stride, D].

    Attributes:
      stride: 2 averages the result over squares of 2×2.

    Raises:
      UserError: when the stride does not divide the map.
    """

    attention: Factory
    stride: int
    activation: Any
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        height, width = x.shape[1:3]
        if height % self.stride or width % self.stride:
            raise UserError(
                f"attention with stride {self.stride} needs a map of even height and width; got "
                f"{height}×{width}: take images whose sides are multiples of 32 pixels"
            )
        x = self.attention(name="attention")(x)
        if self.stride > 1:
            x = average_pool(x, self.stride)
        norm = BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")
        return self.activation(norm(x))


class Unit(nn.Module):
    """A bottleneck of ResNet: [N, H, W, D] -> [N, H / stride, W / stride, features].

    Attributes:
      mix: Makes what stands in the middle, called as `factory(features, stride, name=…)`.
    """

    features: int
    stride: int
    mix: Factory
    activation: Any
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, drop_path_rate: float, *, train: bool) -> jax.Array:
        layer = functools.partial(conv_norm, dtype=self.dtype)
        inside = self.features // _BOTTLENECK
        y = layer(inside, 1, activation=self.activation, name="reduce")(x, train=train)
        y = self.mix(inside, self.stride, name="mix")(y, train=train)
        # A unit starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        zeros = nn.initializers.zeros
        y = layer(self.features, 1, scale_init=zeros, name="expand")(y, train=train)
        y = DropPath(name="residual")(y, drop_path_rate, train=train)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = layer(self.features, 1, self.stride, name="shortcut")(x, train=train)
        return self.activation(x + y)


class BoTNet(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    The tables of relative positions have the size of the image.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      hidden_sizes: Channels of each stage; each but the first halves rows and columns.
      stages: What stands in the middle of the units of each stage, 'conv' or 'attention'.
      num_heads: The same in all attention.
      activation: 'relu' or 'silu'.
      drop_path_rate: Stochastic depth of the last unit, growing linearly from 0.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    hidden_sizes: Sequence[int]
    stages: Sequence[Sequence[str]]
    num_heads: int = 4
    activation: str = "relu"
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        x = images
        for i, features in enumerate(_STEM):
            layer = conv_norm(
                features,
                3,
                2 if i == 0 else 1,
                activation=activation,
                dtype=self.dtype,
                name=f"stem_{i}",
            )
            x = layer(x, train=train)
        show_map(self, 0, x)
        rates = stage_drop_path_rates(self.drop_path_rate, [len(kinds) for kinds in self.stages])
        stages = [self._stage(i, own, activation) for i, own in enumerate(rates)]
        x, _ = run_stages(self, max_pool(x), stages, train=train, first=1)
        return classify(x.mean((1, 2)), self.num_classes, dtype=self.dtype)

    def _stage(self, i: int, drop_path_rates: Sequence[float], activation: Any) -> Factory:
        """Units, the first of which has the stride."""
        mixes = self._mixes(activation)
        units = [
            functools.partial(
                Unit,
                self.hidden_sizes[i],
                2 if i > 0 and j == 0 else 1,
                mixes[kind],
                activation,
                dtype=self.dtype,
            )
            for j, kind in enumerate(self.stages[i])
        ]
        return functools.partial(
            Stage, lambda size: units, drop_path_rates, block_name="unit", remat=self.remat
        )

    def _mixes(self, activation: Any) -> dict[str, Factory]:
        def conv(features: int, stride: int, *, name: str) -> nn.Module:
            fields = {"activation": activation, "dtype": self.dtype, "name": name}
            return conv_norm(features, 3, stride, **fields)

        attend = functools.partial(BottleneckAttention, self.num_heads, dtype=self.dtype)

        def attention(features: int, stride: int, *, name: str) -> nn.Module:
            del features  # attention keeps the width
            return AttentionNorm(attend, stride, activation, dtype=self.dtype, name=name)

        return {"conv": conv, "attention": attention}

"""BoTNet: a ResNet in which attention stands for some of the 3×3 convolutions.

Srinivas et al. 2021, "Bottleneck Transformers for Visual Recognition" (arXiv:2101.11605): as in the
paper, and in timm's form, with a small stem and attention in earlier stages too. Sizes:
`vit_jax.families.botnet`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError, chosen
from vit_jax.layers.attention import attend, shown_by
from vit_jax.layers.block import Factory
from vit_jax.layers.bottleneck import Unit
from vit_jax.layers.conv import average_pool, conv_norm, max_pool
from vit_jax.layers.drop import stage_drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import BatchNorm
from vit_jax.layers.offsets import offset_scores, offset_tables
from vit_jax.layers.stages import Stage, run_stages, show_map

ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}
_STEM = (24, 32, 64)  # channels


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
        rows, columns = offset_tables(self, (height, width), head_dim)
        positions = offset_scores(q * head_dim**-0.5 if self.scale_positions else q, rows, columns)
        q, k, v = (y.reshape(n, height * width, self.num_heads, head_dim) for y in (q, k, v))
        y = attend(q, k, v, bias=positions, look=shown_by(self))
        y = checkpoint_name(y, "attention")
        return y.reshape(x.shape)


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
        activation = chosen(self.activation, ACTIVATIONS, "activation")
        x = self._stem(images, activation, train)
        show_map(self, 0, x)
        rates = stage_drop_path_rates(self.drop_path_rate, [len(kinds) for kinds in self.stages])
        stages = [self._stage(i, own, activation) for i, own in enumerate(rates)]
        x, _ = run_stages(self, max_pool(x), stages, train=train, first=1)
        return classify(x.mean((1, 2)), self.num_classes, dtype=self.dtype)

    def _stem(self, x: jax.Array, activation: Any, train: bool) -> jax.Array:
        """Halves the image."""
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
        return x

    def _stride(self, i: int) -> int:
        """The first unit of stage i divides rows and columns by it."""
        return 2 if i > 0 else 1

    def _unit(self) -> Factory:
        return functools.partial(Unit, dtype=self.dtype)

    def _attention(self) -> Factory:
        return functools.partial(BottleneckAttention, self.num_heads, dtype=self.dtype)

    def _stage(self, i: int, drop_path_rates: Sequence[float], activation: Any) -> Factory:
        """Units, the first of which has the stride."""
        mixes, unit = self._mixes(activation), self._unit()
        units = [
            functools.partial(
                unit,
                self.hidden_sizes[i],
                self._stride(i) if j == 0 else 1,
                mixes[kind],
                activation,
            )
            for j, kind in enumerate(self.stages[i])
        ]
        return functools.partial(
            Stage, lambda size: units, drop_path_rates, block_name="unit", remat=self.remat
        )

    def _mixes(self, activation: Any) -> dict[str, Factory]:
        attend = self._attention()

        def conv(features: int, stride: int, *, name: str) -> nn.Module:
            fields = {"activation": activation, "dtype": self.dtype, "name": name}
            return conv_norm(features, 3, stride, **fields)

        def attention(features: int, stride: int, *, name: str) -> nn.Module:
            del features  # attention keeps the width
            return AttentionNorm(attend, stride, activation, dtype=self.dtype, name=name)

        return {"conv": conv, "attention": attention}


class PaperBoTNet(BoTNet):
    """BoTNet as in the paper: [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    A ResNet's stem; attention in all units of the last stage, whose scores of positions are scaled
    as those of content are. A shortcut with a convolution has an activation behind it, as in the
    code of the paper's authors and in no ResNet.

    Attributes: as in `BoTNet`; and
      last_stride: The last stage divides rows and columns by it; 1 in the models called S1.
      squeeze: Whether every unit has squeeze and excitation, whose layer between has a sixteenth of
        its channels. The published numbers of parameters count it in every unit of S1.
      shortcut_activation: False leaves out what the authors' shortcut has behind its norm.
    """

    last_stride: int = 2
    squeeze: bool = False
    shortcut_activation: bool = True

    def _stem(self, x: jax.Array, activation: Any, train: bool) -> jax.Array:
        layer = conv_norm(64, 7, 2, activation=activation, dtype=self.dtype, name="stem")
        return layer(x, train=train)

    def _stride(self, i: int) -> int:
        return self.last_stride if i + 1 == len(self.stages) else super()._stride(i)

    def _unit(self) -> Factory:
        return functools.partial(
            super()._unit(), squeeze=self.squeeze, shortcut_activation=self.shortcut_activation
        )

    def _attention(self) -> Factory:
        return functools.partial(super()._attention(), scale_positions=True)

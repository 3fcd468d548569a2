"""Refiner: attention maps are widened to more heads, convolved, and used once more.

Zhou et al. 2021, "Refiner: Refining Self-attention for Vision Transformers" (arXiv:2106.03714).
Sizes: `vit_jax.families.refiner`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError
from vit_jax.layers.attention import attend
from vit_jax.layers.block import Factory, run_blocks, torch_mlp
from vit_jax.layers.conv import conv_norm
from vit_jax.layers.drop import DropPath, LayerScale
from vit_jax.layers.head import classify_tokens
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import normal_02
from vit_jax.layers.norm import BatchNorm, LayerNorm
from vit_jax.layers.patch import embed_patches
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.stem import ConvStem
from vit_jax.layers.tokens import exchange_tokens, map_tokens, prepend_tokens

Maps = jax.Array | None  # attention maps [N, heads, T, T] of the block before; None before any


class Refinement(nn.Module):
    """Distributed local attention, and a batch normalisation of each head's map after it.

    [N, heads, T, T] -> the same shape: a map of tokens by tokens is convolved as an image is, the
    class token's row and column like all others (section 3.2 and 3.3).

    Attributes:
      expansion: How many times as many heads there are in between.
    """

    expansion: int
    dtype: Any = None

    @nn.compact
    def __call__(self, maps: jax.Array, *, train: bool) -> jax.Array:
        x = jnp.moveaxis(maps, 1, -1)
        heads = x.shape[-1]
        layer = functools.partial(conv_norm, dtype=self.dtype)
        wide = heads * self.expansion
        y = layer(wide, 1, activation=nn.relu6, name="expand")(x, train=train)
        y = layer(wide, 3, groups=wide, activation=nn.relu6, name="depthwise")(y, train=train)
        x = x + layer(heads, 1, name="project")(y, train=train)
        x = BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(x)
        return jnp.moveaxis(x, -1, 1)


class PropagatingAttention(nn.Module):
    """Attention that adds the maps of the block before to its own, and passes the sum on.

    Tokens [N, T, D] and maps to the same. The softmax is sown as 'attention_weights', as
    `MultiHeadDotProductAttention` sows it.

    Attributes:
      dropout_rate: On the maps.
      out_dropout_rate: On the output.
      expansion: As in `Refinement`, where the sum is refined; None where it is not.
    """

    num_heads: int
    dropout_rate: float = 0.0
    out_dropout_rate: float = 0.0
    expansion: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, maps: Maps, *, train: bool) -> tuple[jax.Array, Maps]:
        width = _head_width(x, self.num_heads)
        project = functools.partial(
            nn.DenseGeneral, (self.num_heads, width), kernel_init=normal_02, dtype=self.dtype
        )
        parts = (project(name=name)(x) for name in ("query", "key", "value"))
        q, k, v = (checkpoint_name(part, "qkv") for part in parts)
        passed = []

        def on_weights(weights: jax.Array) -> jax.Array:
            self.sow("intermediates", "attention_weights", weights)
            if maps is not None:
                weights = weights + maps * width**-0.5
            weights = nn.Dropout(self.dropout_rate, name="weights_dropout")(
                weights, deterministic=not train
            )
            if self.expansion is not None:
                refinement = Refinement(self.expansion, dtype=self.dtype, name="refinement")
                weights = refinement(weights, train=train)
            passed.append(weights)
            return weights

        y = attend(q, k, v, on_weights=on_weights)
        return _out(y, x.shape[-1], self.out_dropout_rate, train, self.dtype), passed[0]


class RefinedAttention(nn.Module):
    """The maps of the block before, refined, in the place of attention of its own.

    Tokens [N, T, D] and maps to tokens and the maps as they were.

    Attributes: as in `PropagatingAttention`.
    """

    num_heads: int
    out_dropout_rate: float = 0.0
    expansion: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, maps: Maps, *, train: bool) -> tuple[jax.Array, Maps]:
        assert maps is not None
        width = _head_width(x, self.num_heads)
        v = nn.DenseGeneral(
            (self.num_heads, width), kernel_init=normal_02, dtype=self.dtype, name="value"
        )(x)
        v = checkpoint_name(v, "qkv")
        refinement = Refinement(self.expansion, dtype=self.dtype, name="refinement")
        weights = refinement(maps, train=train) * width**-0.5
        y = jnp.einsum("nhqk,nkhd->nqhd", weights.astype(v.dtype), v)
        return _out(y, x.shape[-1], self.out_dropout_rate, train, self.dtype), maps


def _head_width(x: jax.Array, num_heads: int) -> int:
    if x.shape[-1] % num_heads:
        raise UserError(f"num_heads={num_heads} does not divide the width {x.shape[-1]}")
    return x.shape[-1] // num_heads


def _out(y: jax.Array, features: int, rate: float, train: bool, dtype: Any) -> jax.Array:
    """The heads' results [N, T, heads, d] to [N, T, features]; adds a layer called `out`."""
    y = checkpoint_name(y, "attention")
    y = nn.DenseGeneral(features, axis=(-2, -1), kernel_init=normal_02, dtype=dtype, name="out")(y)
    return nn.Dropout(rate, name="Dropout_0")(y, deterministic=not train)


class RefinerBlock(nn.Module):
    """A pre-norm block whose attention passes its maps on; a learned scale ends its MLP's branch.

    Attributes: as in `vit_jax.layers.block.Block`; `attention` takes and gives maps.
    """

    attention: Factory
    mlp: Factory
    norm: Factory
    scale_init: float = 1e-5

    @nn.compact
    def __call__(
        self, state: tuple[jax.Array, Maps], drop_path_rate: float | jax.Array, *, train: bool
    ) -> tuple[jax.Array, Maps]:
        x, maps = state
        y = self.norm(name="LayerNorm_0")(x)
        y, maps = self.attention(name="MultiHeadDotProductAttention_0")(y, maps, train=train)
        x = x + DropPath(name="residual_0")(y, drop_path_rate, train=train)
        y = self.norm(name="LayerNorm_1")(x)
        y = self.mlp(name="MlpBlock_0")(y, train=train)
        scaled = LayerScale(self.scale_init, name="residual_1")
        return x + scaled(y, drop_path_rate, train=train), maps


class Refiner(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    They are the class token's plus half of the maximum of the patches' over the patches. It shows
    both (`vit_jax.layers.head.HEADS`): [N, num_classes] and [N, T, num_classes].

    The official blocks compute x += f(norm(x / 2)) · 2. These are plain blocks on x / 2, which is
    what goes through them here.

    Attributes:
      num_classes: 0 returns the same of the features [N, D] that the heads would get.
      patch_size: In pixels; even where there is a stem, which halves the image.
      hidden_size: D, the width of a token.
      reused_layers: Numbers of the blocks, from 0, that have no attention of their own but refine
        the maps of the block before; None is every second one, as published.
      refined_layers: Numbers of others that refine their own maps; none of the published models'.
      refined_expansion: How many times as many heads the refinement of the latter has; three times
        as many are in the former, whatever this is, as in the official code.
      stem_features: Channels of the convolutions before the patches; None for no stem.
      dropout_rate: On the tokens, on the output of each attention, and twice in each MLP.
      attention_dropout_rate: On the maps of attention, and so on what is passed on.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: where the first block is to reuse maps, or a block to do both.
    """

    num_classes: int
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    reused_layers: Sequence[int] | None = None
    refined_layers: Sequence[int] = ()
    refined_expansion: int = 3
    stem_features: Sequence[int] | None = (32, 64, 128)
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, mix: jax.Array | None = None
    ) -> jax.Array:
        """`mix` as in `vit_jax.models.lvvit.LVViT`: patches to take from another image."""
        x, patch = images, self.patch_size
        if self.stem_features is not None:
            stem = ConvStem(self.stem_features, dtype=self.dtype, name="stem")
            x, patch = stem(x, train=train), patch // 2
        x = embed_patches(x, self.hidden_size, (patch, patch), dtype=self.dtype, name="embedding")
        x = exchange_tokens(map_tokens(x), mix)
        x = prepend_tokens(self, x, "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        x = nn.Dropout(self.dropout_rate, name="Dropout_0")(x, deterministic=not train)
        x, _ = run_blocks(
            [self._block(i) for i in range(self.num_layers)],
            (x / 2, None),
            depth=self.num_layers,
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
        )
        x = LayerNorm(dtype=self.dtype, name="encoder_norm")(x * 2)
        return classify_tokens(self, x, self.num_classes, mix, dtype=self.dtype)

    def _block(self, i: int) -> Factory:
        """What makes block number i."""
        odd = range(1, self.num_layers, 2)
        reuses = i in (odd if self.reused_layers is None else self.reused_layers)
        refines = i in self.refined_layers
        if reuses and (refines or i == 0):
            raise UserError(
                f"block {i} cannot reuse maps: "
                + ("it is to refine its own" if refines else "there is no block before it")
            )
        rates = {"out_dropout_rate": self.dropout_rate, "dtype": self.dtype}
        attention = functools.partial(RefinedAttention, self.num_heads, **rates)
        if not reuses:
            attention = functools.partial(
                PropagatingAttention,
                self.num_heads,
                self.attention_dropout_rate,
                expansion=self.refined_expansion if refines else None,
                **rates,
            )
        mlp = torch_mlp(self.mlp_dim, dropout_rate=self.dropout_rate, dtype=self.dtype)
        return functools.partial(
            RefinerBlock, attention, mlp, functools.partial(LayerNorm, dtype=self.dtype)
        )

"""Visual Transformers: a ResNet whose last stage works on a few tokens and not on pixels.

Wu et al. 2020, "Visual Transformers: Token-based Image Representation and Processing for Computer
Vision" (arXiv:2006.03677). The paper gives its modules twice: by equations, and richer, with heads,
groups and positions of tokens, as pseudo-code in the appendix of an early version. No code was
published. Sizes: `vit_jax.families.vt`.

Layers of keys, queries and values are no attention's of [D, heads, d], and are called otherwise.

Throughout, X [N, H, W, C] is a map and T [N, L, D] are L tokens; C and D are one width in the form
of the equations.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes

from vit_jax.errors import UserError, chosen
from vit_jax.layers.attention import attend
from vit_jax.layers.block import Factory
from vit_jax.layers.bottleneck import BasicUnit, Unit
from vit_jax.layers.conv import conv, conv_norm, max_pool
from vit_jax.layers.drop import stage_drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import torch_default
from vit_jax.layers.interpolation import antialiased_weights, linear
from vit_jax.layers.precision import widened
from vit_jax.layers.stages import Stage, run_stages, show_map
from vit_jax.layers.tokens import map_tokens

POSITION_SIDE = 14  # cells of the map to which every token's place is resized before it is encoded


def _linear(features: int, name: str, dtype: Any, *, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias=use_bias, kernel_init=torch_default, dtype=dtype, name=name)


def _over_positions(scores: jax.Array, dtype: Any, axis: int) -> jax.Array:
    """Softmax over the cells of a map, in float32 or wider."""
    return jax.nn.softmax(widened(scores), axis=axis).astype(dtype)


# --- the equations of the paper -------------------------------------------------------------------


class FilterTokenizer(nn.Module):
    """T = softmax(X W)ᵀ X, over the cells (equation 1): [N, H, W, C] -> [N, L, C]."""

    num_tokens: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
        del tokens
        x = map_tokens(x)
        scores = _linear(self.num_tokens, "filter", self.dtype, use_bias=False)(x)
        return jnp.einsum("npl,npc->nlc", _over_positions(scores, x.dtype, 1), x)


class RecurrentTokenizer(nn.Module):
    """T = softmax(X (T_in W)ᵀ)ᵀ X, over the cells (equation 2): tokens of before ask anew."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        x = map_tokens(x)
        filters = _linear(x.shape[-1], "filter", self.dtype, use_bias=False)(tokens)
        scores = jnp.einsum("npc,nlc->npl", x, filters)
        return jnp.einsum("npl,npc->nlc", _over_positions(scores, x.dtype, 1), x)


class TokenTransformer(nn.Module):
    """T + softmax((T K) (T Q)ᵀ) T, then T + ReLU(T F) G (equations 3 and 4): [N, L, C] -> the same.

    Neither a scale nor a matrix of values, as in the paper; each row of the weights adds up to 1.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        width = tokens.shape[-1]
        layer = functools.partial(_linear, width, dtype=self.dtype, use_bias=False)
        keys, queries = (layer(name=name)(tokens)[:, :, None] for name in ("keys", "queries"))
        # What the paper calls K asks here.
        tokens = tokens + attend(keys, queries, tokens[:, :, None], scale=1.0)[:, :, 0]
        return tokens + layer(name="Dense_1")(nn.relu(layer(name="Dense_0")(tokens)))


class Projector(nn.Module):
    """X + softmax((X W) (T V)ᵀ) T, over the tokens (equation 5): [N, H, W, C] -> the same."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        cells = map_tokens(x)
        layer = functools.partial(_linear, x.shape[-1], dtype=self.dtype, use_bias=False)
        q, k = layer(name="queries")(cells)[:, :, None], layer(name="keys")(tokens)[:, :, None]
        return x + attend(q, k, tokens[:, :, None], scale=1.0).reshape(x.shape)


# --- the appendix ---------------------------------------------------------------------------------


class GroupedDense(nn.Module):
    """A linear layer for each of `groups` groups of channels: [N, T, C] -> [N, T, features].

    `kernel` [groups, C / groups, features / groups], `bias` [features].
    """

    features: int
    groups: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1] // self.groups
        shape = (self.groups, inputs, self.features // self.groups)
        # Each group is a layer of its own: its fan-in is that of one.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,))
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = x.reshape(*x.shape[:-1], self.groups, inputs)
        y = jnp.einsum("ntgi,gio->ntgo", x, kernel)
        return y.reshape(*y.shape[:2], self.features) + bias.reshape(1, 1, -1)


class PlaceEncoding(nn.Module):
    """Where on the map each token is: coefficients [N, H, W, L, heads] -> [N, L, P].

    The coefficients of a token, as an image of one channel a head, are resized to `side` × `side`,
    halved by a convolution, and flattened to P = (side / 2)² numbers.
    """

    side: int = POSITION_SIDE
    dtype: Any = None

    @nn.compact
    def __call__(self, weights: jax.Array) -> jax.Array:
        n, height, width, tokens, heads = weights.shape
        x = weights.transpose(0, 3, 1, 2, 4).reshape(n * tokens, height, width, heads)
        if (height, width) != (self.side, self.side):
            # What `jax.image.resize` computes, in operations that can be exported.
            rows, columns = (
                jnp.asarray(antialiased_weights(n, self.side, linear), x.dtype)
                for n in (height, width)
            )
            x = jnp.einsum("ph,nhwc,qw->npqc", rows, x, columns, precision="highest")
        x = conv(heads, 3, stride=2, dtype=self.dtype, name="halve")(x)
        x = conv(1, 1, dtype=self.dtype, name="flatten")(x).reshape(n, tokens, -1)
        return _linear(x.shape[-1], "encode", self.dtype)(x)


class AppendixTokenizer(nn.Module):
    """Tokens that read values of the map, beside where they read them.

    Without tokens of before, a layer of the map says where, the same for all heads. With them, the
    first half of these asks in each head, and the new tokens take the place of the first half.

    Attributes:
      num_tokens: L.
      token_size: D.
      num_heads: Heads, and groups of channels.
      side: As in `PlaceEncoding`.
    """

    num_tokens: int
    token_size: int
    num_heads: int
    side: int = POSITION_SIDE
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
        n, height, width, features = x.shape
        cells = map_tokens(x)
        grouped = functools.partial(GroupedDense, features, self.num_heads, dtype=self.dtype)
        if tokens is None:
            kept, heads = [], 1
            scores = _linear(self.num_tokens, "filter", self.dtype)(cells)[..., None]
        else:
            asking, *kept = jnp.split(tokens, 2, axis=1)
            heads = self.num_heads
            q = _by_head(_linear(features, "queries", self.dtype)(asking), heads)
            scores = jnp.einsum("nphd,nlhd->nplh", _by_head(grouped(name="keys")(cells), heads), q)
        scores = scores / math.sqrt(features // heads)
        weights = _over_positions(scores, x.dtype, 1)  # [N, H · W, L, heads]
        values = _by_head(grouped(name="values")(cells), heads)
        read = jnp.einsum("nplh,nphd->nlhd", weights, values).reshape(n, -1, features)
        places = weights.reshape(n, height, width, *weights.shape[2:])
        places = PlaceEncoding(self.side, dtype=self.dtype, name="places")(places)
        new = jnp.concatenate([read, places.astype(read.dtype)], axis=-1)
        new = _linear(self.token_size, "token", self.dtype)(new)
        return jnp.concatenate([*kept, new], axis=1)


class AppendixTransformer(nn.Module):
    """Attention among tokens by heads, and one linear layer: [N, L, D] -> [N, L, D].

    Scores are divided by √L, as the pseudo-code has it.
    """

    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        length, width = tokens.shape[1:]
        widths = {"queries": width // 2, "keys": width // 2, "values": width}
        q, k, v = (
            _by_head(
                GroupedDense(features, self.num_heads // 2, dtype=self.dtype, name=name)(tokens),
                self.num_heads,
            )
            for name, features in widths.items()
        )
        tokens = tokens + attend(q, k, v, scale=length**-0.5).reshape(tokens.shape)
        return tokens + _linear(width, "Dense_0", self.dtype)(tokens)


class AppendixProjector(nn.Module):
    """Each cell of the map asks the tokens, by heads: [N, H, W, C] -> [N, H, W, C]."""

    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        features = x.shape[-1]
        q = GroupedDense(features, self.num_heads, dtype=self.dtype, name="queries")(map_tokens(x))
        k, v = (_linear(features, name, self.dtype)(tokens) for name in ("keys", "values"))
        return x + attend(*(_by_head(y, self.num_heads) for y in (q, k, v))).reshape(x.shape)


def _by_head(x: jax.Array, heads: int) -> jax.Array:
    """[N, T, C] -> [N, T, heads, C / heads]."""
    return x.reshape(*x.shape[:2], heads, -1)


# --- the model ------------------------------------------------------------------------------------


class TokenStage(nn.Module):
    """A tokenizer, a Transformer, and a projector back to the map: X, T -> X, T.

    Attributes:
      tokenizer, transformer, projector: Called as `factory(name=…)`; no projector leaves the map
        as it is.
    """

    tokenizer: Factory
    transformer: Factory
    projector: Factory | None

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        made = self.transformer(name="transformer")(self.tokenizer(name="tokenizer")(x, tokens))
        if self.projector is not None:
            x = self.projector(name="projector")(x, made)
        return x, made


class VisualTransformer(ImageModel):
    """Images [N, H, W, 3] of any size to logits [N, num_classes], float32 or wider.

    They are read from the mean of the last tokens. The last module projects nothing: nobody would
    look at its map.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      hidden_sizes, depths: Channels and units of each stage of the ResNet, without its last one.
      bottleneck: Whether the units have three convolutions, else two.
      num_modules: How many modules stand for the last stage.
      num_tokens: L.
      token_size: D, of the appendix's form; in that of the equations it is the width of the map.
      num_heads: Heads of the appendix's form, even. They are its groups of channels too; the
        attention among tokens has half as many groups.
      form: 'appendix', or 'equations', as the two are called above.
      drop_path_rate: Stochastic depth of the ResNet's last unit, growing linearly from 0.
      remat: As in `run_blocks`, of the ResNet.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for another form, and for widths that heads or groups do not divide.
    """

    num_classes: int
    hidden_sizes: Sequence[int]
    depths: Sequence[int]
    bottleneck: bool
    num_modules: int
    num_tokens: int = 16
    token_size: int = 1024
    num_heads: int = 16
    form: str = "appendix"
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        make = chosen(self.form, {"appendix": self._appendix, "equations": self._equations}, "form")
        stem = conv_norm(64, 7, 2, activation=nn.relu, dtype=self.dtype, name="stem")
        x = stem(images, train=train)
        show_map(self, 0, x)
        rates = stage_drop_path_rates(self.drop_path_rate, self.depths)
        stages = [self._stage(i, own) for i, own in enumerate(rates)]
        x, _ = run_stages(self, max_pool(x), stages, train=train, first=1)
        tokens = None
        for i in range(self.num_modules):
            tokenizer, transformer, projector = make(first=i == 0)
            projector = projector if i + 1 < self.num_modules else None
            module = TokenStage(tokenizer, transformer, projector, name=f"module_{i}")
            x, tokens = module(x, tokens)
        assert tokens is not None
        return classify(tokens.mean(1), self.num_classes, dtype=self.dtype)

    def _stage(self, i: int, drop_path_rates: Sequence[float]) -> Factory:
        """Units, the first of which has the stride."""

        def mix(features: int, stride: int, *, name: str) -> nn.Module:
            return conv_norm(features, 3, stride, activation=nn.relu, dtype=self.dtype, name=name)

        def unit(j: int) -> Factory:
            fields = (self.hidden_sizes[i], 2 if i > 0 and j == 0 else 1)
            if not self.bottleneck:
                return functools.partial(BasicUnit, *fields, nn.relu, dtype=self.dtype)
            return functools.partial(Unit, *fields, mix, nn.relu, dtype=self.dtype)

        units = [unit(j) for j in range(self.depths[i])]
        return functools.partial(
            Stage, lambda size: units, drop_path_rates, block_name="unit", remat=self.remat
        )

    def _equations(self, *, first: bool) -> tuple[Factory, ...]:
        tokenizer = (
            functools.partial(FilterTokenizer, self.num_tokens) if first else RecurrentTokenizer
        )
        return tuple(
            functools.partial(part, dtype=self.dtype)
            for part in (tokenizer, TokenTransformer, Projector)
        )

    def _appendix(self, *, first: bool) -> tuple[Factory, ...]:
        del first  # it is told by the tokens
        heads, width = self.num_heads, self.hidden_sizes[-1]
        if heads % 2 or width % heads or self.token_size % (2 * heads) or self.num_tokens % 2:
            raise UserError(
                f"num_heads={heads} must be even and divide the {width} channels of the map, twice "
                f"that must divide token_size={self.token_size}, and num_tokens={self.num_tokens} "
                "must be even"
            )
        tokenizer = functools.partial(
            AppendixTokenizer, self.num_tokens, self.token_size, dtype=self.dtype
        )
        parts = (tokenizer, AppendixTransformer, AppendixProjector)
        return tuple(functools.partial(part, num_heads=heads, dtype=self.dtype) for part in parts)

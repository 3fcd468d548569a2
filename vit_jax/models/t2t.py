"""T2T-ViT: tokens that look at their neighbours, and become fewer, before the Transformer starts.

Yuan et al. 2021, "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet"
(arXiv:2101.11986). Sizes: `vit_jax.families.t2t`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError, suggest
from vit_jax.layers.attention import attend, shown_by
from vit_jax.layers.block import torch_mlp, vit_block
from vit_jax.layers.conv import conv
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import normal_02
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.patch import overlapping_patches
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.precision import widened
from vit_jax.layers.sincos import sinusoid
from vit_jax.layers.tokens import map_tokens, prepend_tokens

STRIDE = 16  # pixels from one token of the Transformer to the next: 4 · 2 · 2


class TokenTransformer(nn.Module):
    """A Transformer layer with one head, whose residual stream starts at the values (section 3.1).

    Patches [N, T, k, k, C] to tokens [N, T, D]. The queries are scaled by 1 / √(k k C), as in the
    official code.

    Attributes:
      features: D.
      dropout_rate: On the outputs of the attention and of the MLP.
    """

    features: int
    dropout_rate: float = 0.0
    dtype: Any = None

    qkv_bias = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        patch = (-3, -2, -1)
        norm = functools.partial(LayerNorm5, dtype=self.dtype)
        dense = functools.partial(nn.DenseGeneral, kernel_init=normal_02, dtype=self.dtype)
        drop = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        x = norm(reduction_axes=patch, feature_axes=patch, name="LayerNorm_0")(x)
        q, k, v = (
            dense(self.features, axis=patch, use_bias=self.qkv_bias, name=name)(x)
            for name in ("queries", "keys", "values")
        )
        y = self._attend(q, k, v, math.prod(x.shape[-3:]))
        x = v + drop(name="Dropout_0")(dense(self.features, name="project")(y))
        y = norm(name="LayerNorm_1")(x)
        y = torch_mlp(self.features, dtype=self.dtype)(name="MlpBlock_0")(y, train=train)
        return x + drop(name="Dropout_1")(y)

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, inputs: int) -> jax.Array:
        """[N, T, D] three times to [N, T, D]; `inputs` is the size of what they were made of."""
        q, k, v = (x[..., None, :] for x in (q, k, v))
        return attend(q, k, v, scale=inputs**-0.5, look=shown_by(self))[..., 0, :]


class TokenPerformer(TokenTransformer):
    """The same with attention of a cost that grows with the tokens, not with their square.

    exp(q·k) is estimated by random features, φ(q)·φ(k) with φ(z) = exp(W z - |z|² / 2) / √m
    (Choromanski et al. 2021, arXiv:2009.14794, equation 5), in float32 or wider. The parameter
    `random_features` is W [m, D], m = D // 2, orthogonal rows of length √m: it is drawn once, and
    no gradient changes it.
    """

    qkv_bias = True

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, inputs: int) -> jax.Array:
        del inputs
        w = self.param("random_features", _orthogonal, (self.features // 2, self.features))
        w, kind = jax.lax.stop_gradient(w), v.dtype
        q, k, v = (widened(x) for x in (q, k, v))
        q, k = (_positive_features(x, w.astype(x.dtype)) for x in (q, k))
        sums = jnp.einsum("ntm,nm->nt", q, k.sum(axis=1))
        y = jnp.einsum("ntm,nme->nte", q, jnp.einsum("ntm,nte->nme", k, v))
        return (y / (sums + 1e-8)[..., None]).astype(kind)


def _positive_features(z: jax.Array, w: jax.Array) -> jax.Array:
    """φ: [N, T, D] and W [m, D] to [N, T, m]."""
    half = (z * z).sum(axis=-1, keepdims=True) / 2
    return jnp.exp(jnp.einsum("nte,me->ntm", z, w) - half) / math.sqrt(len(w))


def _orthogonal(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    return nn.initializers.orthogonal(math.sqrt(shape[0]), column_axis=0)(key, shape, dtype)


def _sinusoid(_: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(sinusoid(shape[1], shape[2]))


TOKEN_LAYERS = {"performer": TokenPerformer, "transformer": TokenTransformer}


class T2TViT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider; H and W multiples of 16.

    The official factories scale the scores of blocks by D^-1/2 when they are called with
    `pretrained=True`; its training and evaluation do not, and neither do blocks here.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      token_layer: What the two layers before the Transformer are: 'performer' or 'transformer'.
      token_size: Width of the tokens that these two give.
      token_dropout_rate: Dropout in these two, twice in each.
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for images whose sides are no multiples of 16, and for an unknown `token_layer`.
    """

    num_classes: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    token_layer: str = "performer"
    token_size: int = 64
    token_dropout_rate: float = 0.0
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        height, width = images.shape[1:3]
        if height % STRIDE or width % STRIDE:
            raise UserError(
                f"T2T-ViT takes images whose sides are multiples of {STRIDE} pixels; got "
                f"{height}×{width} (height × width)"
            )
        x = self._token_layer("tokens_0", overlapping_patches(images, 7, 4, 2), train)
        x = self._token_layer("tokens_1", overlapping_patches(x, 3, 2, 1), train)
        # The last step projects overlapping patches, which is a convolution.
        x = conv(
            self.hidden_size, 3, stride=2, kernel_init=normal_02, dtype=self.dtype, name="embedding"
        )(x)
        x = prepend_tokens(self, map_tokens(x), "cls")
        x = AddPositionEmbs(_sinusoid, frozen=True, name="posembed_input")(x)
        block = functools.partial(vit_block, norm=LayerNorm5, qkv_bias=False)
        x = encoder_of(self, block=block, norm=LayerNorm5)(x, train=train)
        return classify(x[:, 0], self.num_classes, dtype=self.dtype)

    def _token_layer(self, name: str, patches: jax.Array, train: bool) -> jax.Array:
        """Patches of a map [N, H, W, k, k, C] to a map [N, H, W, token_size]."""
        if self.token_layer not in TOKEN_LAYERS:
            raise UserError(
                f"token_layer={self.token_layer!r}.{suggest(self.token_layer, TOKEN_LAYERS)} "
                f"Known: {', '.join(TOKEN_LAYERS)}"
            )
        layer = TOKEN_LAYERS[self.token_layer](
            self.token_size, self.token_dropout_rate, dtype=self.dtype, name=name
        )
        batch, height, width = patches.shape[:3]
        tokens = patches.reshape(batch, height * width, *patches.shape[3:])
        return layer(tokens, train=train).reshape(batch, height, width, self.token_size)

"""CLIP: an image and a text tower trained to find one another in a batch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv:2103.00020), section 2.4. OpenCLIP, MetaCLIP and DFN have the same two towers; some of them
have another activation, which no tensor tells. Sizes: `vit_jax.families.clip`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError, chosen
from vit_jax.families import clip as family
from vit_jax.layers.block import Factory, vit_block
from vit_jax.layers.encoder import Encoder, encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import normal_02
from vit_jax.layers.mlp import exact_gelu, quick_gelu
from vit_jax.layers.norm import CentredLayerNorm5
from vit_jax.layers.patch import PatchSize
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.precision import widened
from vit_jax.layers.text_model import Embedded, TextModel
from vit_jax.layers.tokens import patch_tokens, prepend_tokens, show_patches
from vit_jax.models.two_towers import TwoTowerModel

# Whose weights are for which: see `ACTIVATIONS` of the family.
_FUNCTIONS = {family.QUICK: quick_gelu, family.ERF: exact_gelu}
_HIDDEN = -1e10  # added to the score of a token that must not be seen


class CLIPVision(ImageModel):
    """Images [N, H, W, 3] to embeddings [N, num_classes], float32 or wider.

    A Vision Transformer with a LayerNorm before its blocks too, and without biases where pixels
    come in and where the embedding goes out (ibid., section 2.4).

    Attributes:
      num_classes: Outputs of the projection, which is the head of the tower used as a classifier; 0
        returns the features [N, hidden_size].
      activation: 'quick_gelu' or 'gelu', see `vit_jax.families.clip.ACTIVATIONS`.
      patch_size, hidden_size: As in `vit_jax.models.deit.DeiT`.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      dtype: Type to compute in; None follows images and parameters.

    Raises:
      UserError: for an unknown activation, and for none.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    activation: str | None = None
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        embedded = patch_tokens(
            images, self.hidden_size, self.patch_size, use_bias=False, dtype=self.dtype
        )
        x = prepend_tokens(self, embedded, "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        x = CentredLayerNorm5(dtype=self.dtype, name="pre_norm")(x)
        block = _block(self.activation)
        x = encoder_of(self, block=block, norm=CentredLayerNorm5)(x, train=train)
        show_patches(self, embedded, x[:, 1:])
        return classify(x[:, 0], self.num_classes, use_bias=False, dtype=self.dtype)


class CLIPText(TextModel):
    """Tokens [N, L] to embeddings [N, num_classes], float32 or wider; a token sees those before it.

    The text is read off at the first place of the token that ends it. Nothing after it matters, so
    that texts may be filled up with any token, and to any length.

    Attributes:
      num_classes: Outputs of the projection; 0 returns the features [N, hidden_size].
      hidden_size: D, the width of a token.
      activation: 'quick_gelu' or 'gelu', see `vit_jax.families.clip.ACTIVATIONS`.
      vocab_size: Tokens; an id that is none of them gives NaN.
      max_length: Tokens of the longest text.
      end: The token that ends a text; None: the one of the largest number in the text, which it is
        in OpenAI's vocabulary.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, remat, scan, dtype: As
        in `CLIPVision`.

    Raises:
      UserError: for tokens that are none, or longer than `max_length`; and as `CLIPVision`.
    """

    num_classes: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    activation: str | None = None
    vocab_size: int = 49_408
    max_length: int = 77
    end: int | None = None
    model_name: str | None = None
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> Embedded:
        """Returns the embedding, and 'embedded' [N, L, D], 'pre_logits' and 'logits' by name."""
        length = tokens.shape[1]
        if length > self.max_length:
            raise UserError(
                f"expected texts of up to {self.max_length} tokens, got {length}; cut them, and "
                "keep the token that ends them"
            )
        shape = (1, self.max_length, self.hidden_size)
        positions = self.param("pos_embedding", nn.initializers.normal(stddev=0.01), shape)
        x = nn.Embed(
            self.vocab_size,
            self.hidden_size,
            embedding_init=normal_02,
            dtype=self.dtype,
            name="Embed_0",
        )(tokens)
        out = {"embedded": x}
        x = x + positions[:, :length].astype(x.dtype)
        x = Encoder(
            num_layers=self.num_layers,
            mlp_dim=self.mlp_dim,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            block=_block(self.activation),
            norm=CentredLayerNorm5,
            remat=self.remat,
            scan=self.scan,
            dtype=self.dtype,
            name="Encoder_0",
        )(x, train=train, bias=causal_bias(length))
        at = jnp.argmax(tokens if self.end is None else tokens == self.end, axis=1)
        x = out["pre_logits"] = widened(jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0])
        if self.num_classes:
            x = out["logits"] = classify(x, self.num_classes, use_bias=False, dtype=self.dtype)
        return x, out


class CLIP(TwoTowerModel):
    """Images [N, H, W, 3] and tokens [N, L] to unit vectors, [N, D] each.

    Attributes: as in `TwoTowerModel`; training starts from t = 1 / 0.07 (ibid., section 2.5), and
    there is no `b`.
    """

    temperature_init: float = 1 / 0.07
    norm_eps: float = 0.0


def causal_bias(length: int) -> jax.Array:
    """What is added to the scores of attention, [1, 1, L, L]: 0 for tokens up to the one that asks.

    Others get a number that makes their weight 0.
    """
    seen = jnp.tril(jnp.ones((1, 1, length, length), bool))
    return jnp.where(seen, 0.0, jnp.float32(_HIDDEN))


def _block(activation: str | None) -> Callable[..., Factory]:
    """The pre-norm block with an activation by its name."""
    if activation is None:
        raise UserError(f"a model of CLIP must be told {family.ASKED}. Give it as `activation`")
    function = chosen(activation, _FUNCTIONS, "activation")
    return functools.partial(vit_block, activation=function, norm=CentredLayerNorm5)

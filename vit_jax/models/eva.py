"""EVA and EVA-02: Vision Transformers with rotary positions beside learned ones, and sub-norms.

Fang et al. 2023, "EVA-02: A Visual Representation for Neon Genesis" (arXiv:2303.11331), section 2.1
and Table 1, Sun et al. 2023, "EVA-CLIP" (arXiv:2303.15389), and Fang et al. 2022, "EVA"
(arXiv:2211.07636). Sizes: `vit_jax.families.eva`.
"""

import functools
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from vit_jax.errors import chosen
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import vit_block
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.mlp import GatedMlp
from vit_jax.layers.norm import CentredLayerNorm, no_norm
from vit_jax.layers.patch import PatchSize, embed_patches
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.rotary import Rotary, axial_angles, axial_frequencies, in_pairs, rotate_pairs
from vit_jax.layers.tokens import map_tokens, prepend_tokens, show_patches

_BASE = 10_000.0  # of the periods, in patches of the pretraining
_GRID = 16  # rows and columns of patches in pretraining: others are stretched to as many


class EVA(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      rotary: Whether queries and keys of the patches are turned: EVA-02's are, EVA's not.
      gated_mlp: Whether the MLP is gated (`GatedMlp`): the same.
      mlp_norm: Whether a gated MLP normalises the gated product (arXiv:2303.11331, section 2.1).
      attention_norm: Whether attention normalises the joined heads before its output layer, as
        EVA-02's image towers of CLIP do.
      pool: 'gap' normalises the mean of the patches, 'token' normalises all tokens and takes the
        class token.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    rotary: bool = True
    gated_mlp: bool = True
    mlp_norm: bool = False
    attention_norm: bool = False
    pool: str = "gap"
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        takes_mean = chosen(self.pool, {"gap": True, "token": False}, "pool")
        cells = embed_patches(
            images, self.hidden_size, self.patch_size, dtype=self.dtype, name="embedding"
        )
        embedded = map_tokens(cells)
        x = AddPositionEmbs(name="posembed_input")(prepend_tokens(self, embedded, "cls"))
        context = {"rotary": self._rotary(*cells.shape[1:3])} if self.rotary else {}
        norm = no_norm if takes_mean else CentredLayerNorm
        x = encoder_of(self, block=self._block, norm=norm)(x, train=train, **context)
        show_patches(self, embedded, x[:, 1:])
        if takes_mean:
            x = CentredLayerNorm(dtype=self.dtype, name="fc_norm")(x[:, 1:].mean(axis=1))
        else:
            x = x[:, 0]
        return classify(x, self.num_classes, dtype=self.dtype)

    def _rotary(self, height: int, width: int) -> Rotary:
        """The angles (y f; x f) of patches that are counted from 0 as in a map of 16 × 16."""
        frequencies = axial_frequencies(self.hidden_size // self.num_heads, _BASE)
        rows, columns = (np.arange(n) * (_GRID / n) for n in (height, width))
        return in_pairs(axial_angles(rows, columns, frequencies))

    def _block(self, num_heads: int, mlp_dim: int, **how: Any) -> Any:
        mlp = functools.partial(GatedMlp, norm=CentredLayerNorm if self.mlp_norm else None)
        attention = functools.partial(
            MultiHeadDotProductAttention,
            rotate=rotate_pairs,
            inner_norm=CentredLayerNorm if self.attention_norm else None,
        )
        return vit_block(
            num_heads,
            mlp_dim,
            attention=attention,
            qkv_bias=("query", "value"),
            mlp=mlp if self.gated_mlp else None,
            norm=CentredLayerNorm,
            **how,
        )

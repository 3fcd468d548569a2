"""BEiT and BEiT v2, fine-tuned: positions are biases of the scores, and patches are averaged.

Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers" (arXiv:2106.08254), and Peng et
al. 2022, "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers"
(arXiv:2208.06366). Sizes: `vit_jax.families.beit`.
"""

import functools
from typing import Any

import jax
from flax import linen as nn

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import vit_block
from vit_jax.layers.drop import LayerScale
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.norm import CentredLayerNorm, no_norm
from vit_jax.layers.patch import PatchSize, embed_patches
from vit_jax.layers.relative import CLASS_ROWS, Size, class_position_index
from vit_jax.layers.tokens import map_tokens, prepend_tokens, show_patches


class BEiT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    The class token has no position and is left out of the mean, which is normalised in the place of
    the tokens (arXiv:2106.08254, section 2.5 and the official code). Images of another size need
    tables of biases of another size.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      layer_scale_init: What each element of a branch's scale is at first.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    layer_scale_init: float = 0.1
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        cells = embed_patches(
            images, self.hidden_size, self.patch_size, dtype=self.dtype, name="embedding"
        )
        embedded = map_tokens(cells)
        x = prepend_tokens(self, embedded, "cls")
        rows, columns = cells.shape[1:3]
        block = functools.partial(
            vit_block,
            norm=CentredLayerNorm,
            residual=functools.partial(LayerScale, self.layer_scale_init),
            attention=functools.partial(RelativeAttention, window=(rows, columns)),
            qkv_bias=("query", "value"),
        )
        x = encoder_of(self, block=block, norm=no_norm)(x, train=train)
        show_patches(self, embedded, x[:, 1:])
        x = CentredLayerNorm(dtype=self.dtype, name="fc_norm")(x[:, 1:].mean(axis=1))
        return classify(x, self.num_classes, dtype=self.dtype)


class BEiTv2(BEiT):
    """The same model, which learned from other targets: it wants its images otherwise prepared.

    Attributes: as in `BEiT`.
    """

    layer_scale_init: float = 1e-5


class RelativeAttention(MultiHeadDotProductAttention):
    """Attention of a class token and a map's cells, with a bias for each distance of two of them.

    arXiv:2106.08254, section 2.5 and the official code. Parameter `relative_position_bias`
    [(2 rows - 1) (2 columns - 1) + 3, heads], whose rows `class_position_index` tells.

    Attributes: as in `MultiHeadDotProductAttention`; and
      window: Rows and columns of the map.
    """

    window: Size = (14, 14)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, **fields: Any) -> jax.Array:
        rows, columns = self.window
        shape = ((2 * rows - 1) * (2 * columns - 1) + CLASS_ROWS, self.num_heads)
        table = self.param("relative_position_bias", nn.initializers.zeros, shape)
        bias = table[class_position_index(self.window)].transpose(2, 0, 1)[None]
        return super().__call__(x, train=train, bias=bias, **fields)

"""DINOv3: a Vision Transformer whose positions are angles, with registers and LayerScale.

Siméoni et al. 2025, "DINOv3" (arXiv:2508.10104), section 3.2 and Table 2. Sizes:
`vit_jax.families.dinov3`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vit_jax.layers.block import vit_block
from vit_jax.layers.drop import LayerScale
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.masking import Corruption, corrupt_tokens
from vit_jax.layers.mlp import GatedMlp
from vit_jax.layers.norm import CentredLayerNorm5
from vit_jax.layers.patch import PatchSize, embed_patches
from vit_jax.layers.rotary import Rotary, axial_angles, axial_frequencies, centred, in_halves
from vit_jax.layers.tokens import insert_registers, map_tokens, prepend_tokens, show_patches

_BASE = 100.0  # of the periods, in units of half an image


class DINOv3(ImageModel):
    """Class token, registers and patches; queries and keys of the patches are turned.

    Images [N, H, W, 3] to logits [N, num_classes] of the class token after the last norm, float32
    or wider. There is no table of positions: images of any size of whole patches are taken.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      gated_mlp: Whether the MLP is gated (`GatedMlp`).
      qkv_bias: The names of the projections that have a bias, of 'query', 'key' and 'value'.
      num_registers: How many there are.
      layer_scale_init: What each element of a branch's scale is at first.
      rescale: In training the coordinates of the patches are multiplied by a factor, one for all
        images of a step, whose logarithm is uniform in ±log(rescale); None leaves them.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    gated_mlp: bool = False
    qkv_bias: tuple[str, ...] = ("query", "value")
    num_registers: int = 4
    layer_scale_init: float = 1e-5
    rescale: float | None = None
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, corruption: Corruption | None = None
    ) -> jax.Array:
        """`corruption` says which embedded patches become the mask token or another patch."""
        cells = embed_patches(
            images, self.hidden_size, self.patch_size, dtype=self.dtype, name="embedding"
        )
        embedded = map_tokens(cells)
        x = corrupt_tokens(self, embedded, corruption, mask_token=True, name="mask_token")
        x = prepend_tokens(self, x, "cls")
        x = insert_registers(self, x, self.num_registers, first=1)
        block = functools.partial(
            vit_block,
            mlp=GatedMlp if self.gated_mlp else None,
            norm=CentredLayerNorm5,
            residual=functools.partial(LayerScale, self.layer_scale_init),
            qkv_bias=self.qkv_bias,
        )
        encoder = encoder_of(self, block=block, norm=CentredLayerNorm5)
        x = encoder(x, train=train, rotary=self._rotary(*cells.shape[1:3], train=train))
        show_patches(self, embedded, x[:, 1 + self.num_registers :])
        return classify(x[:, 0], self.num_classes, dtype=self.dtype)

    def _rotary(self, height: int, width: int, *, train: bool) -> Rotary:
        """The angles 2π (y f; x f) of patches whose coordinates reach from -1 to 1 on each axis."""
        frequencies = 2 * np.pi * axial_frequencies(self.hidden_size // self.num_heads, _BASE)
        angles = axial_angles(centred(height), centred(width), frequencies)
        if train and self.rescale is not None:
            bound = np.log(self.rescale)
            power = jax.random.uniform(self.make_rng("dropout"), minval=-bound, maxval=bound)
            angles = angles * jnp.exp(power)
        return in_halves(angles)

"""CPVT: positions that a convolution tells from the patches, so that images may have any size.

Chu et al. 2021, "Conditional Positional Encodings for Vision Transformers" (arXiv:2102.10882): the
flat models. Sizes: `vit_jax.families.cpvt`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.block import run_blocks, vit_block
from vit_jax.layers.conditional_position import PositionEncodingGenerator
from vit_jax.layers.drop import drop_path_rates
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import he_depthwise
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.patch import PatchSize, embed_patches
from vit_jax.layers.tokens import map_tokens, prepend_tokens


class CPVT(ImageModel):
    """Images [N, H, W, 3] of any size to logits [N, num_classes], float32 or wider.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      position_layers: After how many of the first blocks positions are added (section 4.1 and
        Table 5): 1 is the paper's default, 0 is none at all.
      class_token: Whether a class token is read, which the positions pass by; else the mean of the
        patches is (section 4.3).
      dropout_rate: On the tokens, on the output of each attention, and twice in each MLP.
      attention_dropout_rate: On the attention weights.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    position_layers: int = 1
    class_token: bool = True
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = embed_patches(
            images, self.hidden_size, self.patch_size, dtype=self.dtype, name="embedding"
        )
        grid = x.shape[1:3]
        x = map_tokens(x)
        if self.class_token:
            x = prepend_tokens(self, x, "cls")
        x = nn.Dropout(self.dropout_rate, name="Dropout_0")(x, deterministic=not train)
        before = min(self.position_layers, self.num_layers)
        for i in range(before):
            x = self._blocks(x, i, i + 1, train)
            x = self._positions(x, grid, f"positions_{i}")
        x = self._blocks(x, before, self.num_layers, train)
        x = LayerNorm(dtype=self.dtype, name="encoder_norm")(x)
        x = x[:, 0] if self.class_token else x.mean(axis=1)
        return classify(x, self.num_classes, dtype=self.dtype)

    def _blocks(self, x: jax.Array, first: int, end: int, train: bool) -> jax.Array:
        """Runs the blocks from number `first` up to, and without, number `end`."""
        block = vit_block(
            self.num_heads,
            self.mlp_dim,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            dtype=self.dtype,
        )
        return run_blocks(
            block,
            x,
            depth=end - first,
            name="encoderblock",
            train=train,
            first=first,
            drop_path_rate=drop_path_rates(self.drop_path_rate, self.num_layers)[first:end],
            remat=self.remat,
        )

    def _positions(self, x: jax.Array, grid: tuple[int, ...], name: str) -> jax.Array:
        """Adds to the patches [N, rows · columns, D], behind a class token if there is one."""
        first = int(self.class_token)
        patches = x[:, first:].reshape(x.shape[0], *grid, x.shape[-1])
        generator = PositionEncodingGenerator(he_depthwise, self.dtype, name=name)
        return jnp.concatenate([x[:, :first], map_tokens(generator(patches))], axis=1)

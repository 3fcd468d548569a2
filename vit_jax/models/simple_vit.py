"""SimpleViT: mean pooling, computed positions, no class token and no dropout.

Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k" (arXiv:2205.01580). Names of
parameters and initialisers are big_vision's, whose other ways to pool and learned positions are
fields. Sizes: `vit_jax.families.simple_vit`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import chosen
from vit_jax.layers.block import google_block
from vit_jax.layers.encoder import encoder_of
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.patch import PatchSize, embed_patches
from vit_jax.layers.pool import MAPHead
from vit_jax.layers.sincos import sincos2d
from vit_jax.layers.tokens import map_tokens, prepend_tokens


def _map(model: "SimpleViT", x: jax.Array, train: bool) -> jax.Array:
    head = MAPHead(model.num_heads, model.mlp_dim, dtype=model.dtype, name="MAPHead_0")
    return head(x, train=train)


POOLS = {
    "gap": lambda model, x, train: x.mean(axis=1),
    "token": lambda model, x, train: x[:, 0],
    "map": _map,
    "first": lambda model, x, train: x[:, 0],
}


class SimpleViT(ImageModel):
    """Images [N, H, W, 3] in [-1, 1] to logits [N, num_classes], float32 or wider.

    No parameter depends on the image size, unless positions are learned.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels: the side of a square, or (height, width).
      hidden_size: D, the width of a token.
      num_layers, num_heads, mlp_dim, dropout_rate, attention_dropout_rate, drop_path_rate, remat,
        scan: As in `vit_jax.layers.encoder.Encoder`.
      pool: Tokens to one vector: 'gap', their mean; 'token', a class token, which has no position;
        'map', attention pooling (`vit_jax.layers.pool.MAPHead`); 'first', the first patch.
      position_embedding: 'sincos2d', which is computed, or 'learned', a table `pos_embedding`
        [1, T, D] for one image size.
      representation_size: Width of a tanh layer before the head, which big_vision's recipe has and
        the paper has not; None for none.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: PatchSize
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    pool: str = "gap"
    position_embedding: str = "sincos2d"
    representation_size: int | None = None
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    scan: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = embed_patches(
            images, self.hidden_size, self.patch_size, dtype=self.dtype, name="embedding"
        )
        pool = chosen(self.pool, POOLS, "pool")
        x = map_tokens(x) + self._positions((x.shape[1], x.shape[2]), x.dtype)
        if self.pool == "token":
            x = prepend_tokens(self, x, "cls", init=nn.initializers.zeros)
        x = encoder_of(self, block=google_block)(x, train=train)
        x = pool(self, x, train)
        if self.representation_size is not None:
            x = nn.tanh(nn.Dense(self.representation_size, dtype=self.dtype, name="pre_logits")(x))
        zeros = nn.initializers.zeros
        return classify(x, self.num_classes, kernel_init=zeros, dtype=self.dtype)

    def _positions(self, grid: tuple[int, int], dtype: Any) -> jax.Array:
        """[1, rows · columns, D]."""
        kinds = {"sincos2d": None, "learned": nn.initializers.normal(self.hidden_size**-0.5)}
        init = chosen(self.position_embedding, kinds, "position_embedding")
        if init is None:
            return jnp.asarray(sincos2d(grid, self.hidden_size, dtype=dtype))
        shape = (1, grid[0] * grid[1], self.hidden_size)
        return self.param("pos_embedding", init, shape).astype(dtype)

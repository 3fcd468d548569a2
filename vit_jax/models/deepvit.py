"""DeepViT: heads that exchange their attention maps, so that those of deep layers stay different.

Zhou et al. 2021, "DeepViT: Towards Deeper Vision Transformer" (arXiv:2103.11886). Sizes:
`vit_jax.families.deepvit`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.block import run_blocks, vit_block
from vit_jax.layers.conv import conv_norm
from vit_jax.layers.head import classify
from vit_jax.layers.image_model import ImageModel
from vit_jax.layers.init import torch_default
from vit_jax.layers.norm import BatchNorm, LayerNorm
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.tokens import patch_tokens, prepend_tokens


class ReAttention(MultiHeadDotProductAttention):
    """Norm(Θᵀ softmax(Q Kᵀ / √d)) V, where Θ mixes the heads (ibid., equation 3).

    As `MultiHeadDotProductAttention`; and Θ with a bias is `weights_mix`, `kernel` [heads, heads]
    and `bias` [heads], the norm is `weights_norm`, a batch normalisation of each head's weights.
    What is sown are the weights before them: only these add up to 1.

    Attributes:
      weights_scale: The normalised weights are multiplied by it.
    """

    weights_scale: float = 1.0

    def _on_weights(self, train: bool) -> Callable[[jax.Array], jax.Array]:
        before = super()._on_weights(train) or self._seen
        return lambda weights: self._reattend(before(weights), train)

    def _reattend(self, weights: jax.Array, train: bool) -> jax.Array:
        """[N, heads, Q, K] -> [N, heads, Q, K]."""
        dtype = weights.dtype
        mix = nn.DenseGeneral(
            self.num_heads, axis=1, kernel_init=torch_default, dtype=dtype, name="weights_mix"
        )
        norm = BatchNorm(use_running_average=not train, dtype=dtype, name="weights_norm")
        return jnp.moveaxis(norm(mix(weights)), -1, 1) * self.weights_scale


class DeepViT(ImageModel):
    """Images [N, H, W, 3] to logits [N, num_classes], float32 or wider.

    The official blocks compute x += attention(norm(r x)) / r and x += mlp(norm(r x)) / r. These are
    plain blocks on r x, which is what goes through them here.

    Attributes:
      num_classes: 0 returns the features [N, D] that the head would get.
      patch_size: In pixels; even where there is a stem, which halves the image.
      hidden_size: D, the width of a token.
      reattention_layers: How many blocks have re-attention: the last ones.
      reattention_scaled: Whether re-attention divides its weights by √d, as it does its scores.
      stem_features: Channels of two convolutions before the patches; None for no stem.
      stream_scale: r. A branch adds to x by 1 / r as much.
      drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
      remat: As in `run_blocks`.
      dtype: Type to compute in; None follows images and parameters.
    """

    num_classes: int
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    reattention_layers: int
    reattention_scaled: bool = False
    stem_features: int | None = None
    stream_scale: float = 1.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self._tokens(images, train)
        x = prepend_tokens(self, x, "cls")
        x = AddPositionEmbs(name="posembed_input")(x)
        scale = (self.hidden_size // self.num_heads) ** -0.5 if self.reattention_scaled else 1.0
        reattention = functools.partial(ReAttention, weights_scale=scale)
        block = functools.partial(vit_block, self.num_heads, self.mlp_dim, dtype=self.dtype)
        plain = self.num_layers - self.reattention_layers
        x = run_blocks(
            [block()] * plain + [block(attention=reattention)] * self.reattention_layers,
            x * self.stream_scale,
            depth=self.num_layers,
            name="encoderblock",
            train=train,
            drop_path_rate=self.drop_path_rate,
            remat=self.remat,
        )
        x = LayerNorm(dtype=self.dtype, name="encoder_norm")(x / self.stream_scale)
        return classify(x[:, 0], self.num_classes, dtype=self.dtype)

    def _tokens(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, T, D], row by row."""
        patch = self.patch_size
        if self.stem_features is not None:
            for i, (kernel, stride) in enumerate(((7, 2), (3, 1))):
                x = conv_norm(
                    self.stem_features,
                    kernel,
                    stride,
                    activation=nn.relu,
                    dtype=self.dtype,
                    name=f"stem_{i}",
                )(x, train=train)
            patch //= 2
        return patch_tokens(x, self.hidden_size, (patch, patch), dtype=self.dtype)

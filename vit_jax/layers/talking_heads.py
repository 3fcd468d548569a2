"""Talking-heads attention (Shazeer et al. 2020, arXiv:2003.02436)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.init import normal_02


class TalkingHeadsAttention(MultiHeadDotProductAttention):
    """Attention whose heads are mixed linearly before and after the softmax.

    As `MultiHeadDotProductAttention`, with `scores_mix` and `weights_mix`, both `kernel`
    [heads, heads] and `bias` [heads]. Scores are mixed in float32 or wider. What is sown are the
    weights before they are mixed: only these add up to 1.

    Attributes:
      mix_bias: Whether the mixtures have a bias.
    """

    mix_bias: bool = True

    def _on_scores(self) -> Callable[[jax.Array], jax.Array]:
        return lambda scores: self._mix(scores, "scores_mix")

    def _on_weights(self, train: bool) -> Callable[[jax.Array], jax.Array]:
        drop = self._drop(train) or (lambda weights: weights)
        return lambda weights: drop(self._mix(self._seen(weights), "weights_mix"))

    def _mix(self, x: jax.Array, name: str) -> jax.Array:
        """[N, heads, Q, K] -> [N, heads, Q, K]."""
        mix = nn.DenseGeneral(
            self.num_heads,
            axis=1,
            use_bias=self.mix_bias,
            kernel_init=normal_02,
            dtype=x.dtype,
            name=name,
        )
        return jnp.moveaxis(mix(x), -1, 1)

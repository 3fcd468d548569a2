"""Attention in which a map asks a smaller copy of itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.conv import conv
from vit_jax.layers.init import torch_default
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.tokens import map_tokens


class PooledReduction(nn.Module):
    """The map averaged to `size`², whatever its size is: [N, H, W, D] -> [N, size, size, D].

    It belongs to "linear" attention (Wang et al. 2022, arXiv:2106.13797, section 3).
    """

    size: int = 7
    kernel_init: Callable[..., jax.Array] = torch_default
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = average_to(x, (self.size, self.size))
        x = conv(x.shape[-1], 1, kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)
        return nn.gelu(LayerNorm5(dtype=self.dtype, name="norm")(x), approximate=False)


class ReducedAttention(MultiHeadDotProductAttention):
    """A map's tokens are the queries, those of its reduced copy the keys and values.

    Spatial-reduction attention: Wang et al. 2021 (arXiv:2102.12122), section 3.3.
    [N, H, W, D] -> [N, H, W, D].

    Attributes: as in `MultiHeadDotProductAttention`; and
      reduction: Called as `factory(name=…)(x)`, map to map; None for the map itself. The paper's
        is a `PatchEmbedding` of R × R patches (equation 3).
    """

    reduction: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, **fields: Any) -> jax.Array:
        """`fields`: `bias`, as in `attend`."""
        reduced = x if self.reduction is None else self.reduction(name="reduction")(x)
        y = super().__call__(map_tokens(reduced), queries=map_tokens(x), train=train, **fields)
        return y.reshape(x.shape)


def average_to(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Averages of a map [N, H, W, C] over regions: [N, *size, C].

    PyTorch's adaptive average pooling: region i of n goes from ⌊iH / n⌋ up to ⌈(i + 1)H / n⌉, so
    that regions may overlap, and a map smaller than `size` is enlarged.
    """
    rows, columns = (_averages(old, new) for old, new in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ri,nijc,sj->nrsc", rows.astype(x.dtype), x, columns.astype(x.dtype))


def _averages(old: int, new: int) -> np.ndarray:
    """[new, old], every row summing to 1."""
    first, end = (np.arange(new + 1) * old // new)[:-1], -(-np.arange(1, new + 1) * old // new)
    inside = (np.arange(old) >= first[:, None]) & (np.arange(old) < end[:, None])
    return inside / inside.sum(1, keepdims=True)

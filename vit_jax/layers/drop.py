"""What a residual branch goes through before it is added: stochastic depth, LayerScale."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn


class DropPath(nn.Module):
    """Drops a residual branch for whole examples (Huang et al. 2016, arXiv:1603.09382).

    A kept branch is divided by its probability of being kept, so that the expectation is the
    undropped branch. Draws from the 'dropout' stream.
    """

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, *, train: bool) -> jax.Array:
        """`x` [N, …]; `rate` is the probability of dropping, traced when blocks are scanned."""
        if not train or (isinstance(rate, float) and rate == 0.0):
            return x
        keep = jnp.asarray(1.0 - rate, x.dtype)
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep.astype(jnp.float32), x.shape[:1])
        mask = mask.reshape(x.shape[:1] + (1,) * (x.ndim - 1))
        return jnp.where(mask, x / keep, jnp.zeros((), x.dtype))


class LayerScale(nn.Module):
    """Multiplies a branch by a learned vector `gamma` [D], then drops it as `DropPath` does.

    Touvron et al. 2021 (CaiT, arXiv:2103.17239), equation 4.

    Attributes:
      init: What every element of `gamma` is at first.
    """

    init: float

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, *, train: bool) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.constant(self.init), (x.shape[-1],))
        x = x * gamma.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return DropPath(name="DropPath_0")(x, rate, train=train)


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """Rates growing linearly from 0 at the first block to `rate` at the last (ibid., section 3)."""
    return tuple(float(rate * i / max(depth - 1, 1)) for i in range(depth))


def stage_drop_path_rates(rate: float, depths: Sequence[int]) -> list[tuple[float, ...]]:
    """`drop_path_rates` over the blocks of all stages, cut into stages."""
    rates = iter(drop_path_rates(rate, sum(depths)))
    return [tuple(itertools.islice(rates, depth)) for depth in depths]

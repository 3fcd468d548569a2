"""Attention of long rows by plain operations, a block of queries at a time.

The scores of all queries and keys are never there at once: those of a block are computed, used,
and computed again in the backward pass (Rabe and Staats 2021, arXiv:2112.05682, without the split
of the keys). Memory grows with the number of tokens, not with its square.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# As many scores of one image's heads as are there at once, and the fewest queries of a block: with
# fewer, products are too small to be fast.
_SCORES, _FEWEST = 2**22, 128


def block_size(queries: int, keys: int, heads: int) -> int:
    """The number of queries of a block."""
    return min(queries, max(_FEWEST, _SCORES // (keys * heads)))


def blocked(
    attend: Callable[[jax.Array, jax.Array | None], jax.Array],
    q: jax.Array,
    bias: jax.Array | None,
    size: int,
) -> jax.Array:
    """`attend(q, bias)` of blocks of queries, one after another.

    Args:
      attend: Sees [N, …, size, heads, d] queries and their part of the bias.
      q: [N, …, Q, heads, d].
      bias: Broadcasts to [N, …, heads, Q, K].
      size: Queries of a block; those that are missing in the last one are zeros, whose results are
        left out.

    Returns:
      [N, …, Q, heads, e].
    """
    count, length = math.ceil(q.shape[-3] / size), q.shape[-3]
    parts = [_split(q, -3, count, size)]
    # A bias that is the same for all queries is not cut.
    if bias is not None and bias.ndim > 1 and bias.shape[-2] == length:
        parts.append(_split(bias, -2, count, size))

    @jax.checkpoint
    def step(part: list[jax.Array]) -> jax.Array:
        return attend(part[0], part[1] if len(part) == 2 else bias)

    found = jax.lax.map(step, parts)
    found = jnp.moveaxis(found, 0, -4)
    found = found.reshape(*found.shape[:-4], count * size, *found.shape[-2:])
    return found[..., :length, :, :]


def _split(x: jax.Array, axis: int, count: int, size: int) -> jax.Array:
    """[count, …, size, …] from [..., length, …], filled up with zeros."""
    axis %= x.ndim
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count * size - x.shape[axis])
    x = jnp.pad(x, widths)
    x = x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

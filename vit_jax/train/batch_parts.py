"""A batch in parts, one after the other, and put together again.

Part i of n holds the examples i, i + n, …: where the batch is split over devices, each of them
takes its share of every part and no example moves.
"""

from typing import Any

import jax
import jax.numpy as jnp


def split(batch: Any, n: int) -> Any:
    """Arrays [N, …] to [n, N / n, …]; n divides N."""

    def of(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(of, batch)


def join(parts: Any) -> Any:
    """The inverse of `split`."""

    def of(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(of, parts)


def pad(batch: Any, shards: int, multiple: int) -> Any:
    """Zeros after each of `shards` equal runs of rows, so that its length is a `multiple`."""

    def of(x: jax.Array) -> jax.Array:
        x = x.reshape(shards, -1, *x.shape[1:])
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(of, batch)

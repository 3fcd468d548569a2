"""Cuts a batch into parts that are computed one after the other, and joins the parts again.

Part i of n holds the examples i, i + n, i + 2 n, …. If the batch is split over devices, each device
therefore holds an equal share of every part, and no example moves between devices.
"""

from typing import Any

import jax
import jax.numpy as jnp


def split(batch: Any, n: int) -> Any:
    """Turns every array [N, …] of a batch into `n` parts, [n, N / n, …]; n must divide N."""

    def of(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(of, batch)


def join(parts: Any) -> Any:
    """Turns parts [n, N / n, …] back into the arrays [N, …] that `split` was given."""

    def of(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(of, parts)


def pad(batch: Any, shards: int, multiple: int) -> Any:
    """Pads every array [N, …] with zeros so that each shard's rows are a multiple of `multiple`.

    Args:
      batch: A tree of arrays [N, …], of which each shard holds N / `shards` consecutive rows.
      shards: The number of shards; it must divide N.
      multiple: The padded number of rows of a shard is divisible by this number.
    """

    def of(x: jax.Array) -> jax.Array:
        x = x.reshape(shards, -1, *x.shape[1:])
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(of, batch)

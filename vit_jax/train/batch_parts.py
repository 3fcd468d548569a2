"""Cuts a batch into parts that are computed one after the other, and joins the parts again.

Part i of n holds the examples i, i + n, i + 2 n, …. If the batch is split over devices, each device
therefore holds an equal share of every part, and no example moves between devices.
"""

from collections.abc import Callable
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


def in_parts(
    function: Callable[[Any], tuple[Any, Any]], batch: Any, shards: int, rows: int | None
) -> tuple[Any, Any]:
    """Applies `function` to `rows` examples of each shard at a time, whatever the batch's size is.

    The shape of what is computed at once and the number of devices decide how the compiler cuts
    matrix products into blocks, and may thereby change the last digit of an example's result. Here
    that shape is always the same, and no result depends on the batch or on the number of shards.

    Args:
      function: From a part of the batch to a tree of figures and a tree of arrays [rows, ...].
      batch: A tree of arrays [N, ...], of which each shard holds N / `shards` consecutive rows.
      shards: The number of devices that split the batch; it must divide N.
      rows: The number of examples at a time; None for all that a shard holds.

    Returns:
      The figures, with a leading axis for the parts; and the arrays [N, ...]. Both have seen the
      zeros that a batch is filled up with.
    """
    share = jax.tree.leaves(batch)[0].shape[0] // shards
    at_once = rows or share

    def part(batch: Any) -> tuple[Any, Any]:
        # XLA inlines a loop of one iteration. The barriers keep the body from being fused with the
        # code around it.
        return jax.lax.optimization_barrier(function(jax.lax.optimization_barrier(batch)))

    padded = split(pad(batch, shards, at_once), -(-share // at_once))
    figures, arrays = jax.lax.map(part, padded)

    def whole(x: jax.Array) -> jax.Array:
        return x.reshape(shards, -1, *x.shape[1:])[:, :share].reshape(-1, *x.shape[1:])

    return figures, jax.tree.map(whole, join(arrays))

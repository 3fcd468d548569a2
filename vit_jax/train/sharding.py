"""How arrays lie over the devices: batches split, everything else in full on each."""

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError


def make_mesh() -> Mesh:
    """All devices on one axis, 'data'."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(name: str, size: int, mesh: Mesh, accum_steps: int = 1) -> None:
    """Raises UserError unless every device gets the same number of examples in every part."""
    if size <= 0 or size % (mesh.size * max(accum_steps, 1)):
        parts = f" times accum_steps={accum_steps}" if accum_steps > 1 else ""
        raise UserError(
            f"{name}={size} must be a positive multiple of the number of devices, "
            f"{mesh.size}{parts}"
        )


def to_devices(batches: Iterable[Any], sharding: NamedSharding, ahead: int) -> Iterator[Any]:
    """The same batches on the devices, `ahead` of them before they are asked for.

    Each process hands in its own part of the global batch.
    """
    batches = iter(batches)
    ready: collections.deque[Any] = collections.deque()

    def put(n: int) -> None:
        for batch in itertools.islice(batches, n):
            ready.append(
                jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
            )

    put(max(ahead, 1))
    while ready:
        yield ready.popleft()
        put(1)

"""Sizes of shards, and whether 'fsdp' splits most of the parameters into shards of useful size."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax.devices.sharding import MIN_SIZE
from vit_jax.tree import arrays

# A TPU stores arrays in tiles of 8 rows, and pads a shard of fewer rows to 8.
LEAST_ROWS = 8


def bytes_a_device(tree: Any, shardings: Any) -> int:
    """Bytes of the arrays or shapes in `tree` on each device that `shardings` split them over."""
    return sum(
        math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    )


def unsplit(params: Any, shardings: Any, mesh: Mesh) -> str | None:
    """A warning about parameters that 'fsdp' leaves whole or cuts into shards of too few rows.

    Args:
      params: A nested dict of arrays or shapes.
      shardings: The sharding of each parameter on `mesh`.
      mesh: The mesh.

    Returns:
      One sentence, or None if such parameters are less than 1 % of the large ones.
    """
    axis = mesh.shape["fsdp"]
    if axis == 1:
        return None
    shapes = {name: x.shape for name, x in arrays(params).items()}
    layouts = arrays(shardings)
    large = {name: shape for name, shape in shapes.items() if math.prod(shape) >= MIN_SIZE}
    bad = [name for name, shape in large.items() if not _well_split(shape, layouts[name])]
    total = sum(map(math.prod, large.values()))
    share = sum(math.prod(large[name]) for name in bad) / max(total, 1)
    if share < 0.01:
        return None
    widths = sorted({shapes[name][-1] for name in bad})
    fitting = [n for n in range(2, axis) if axis % n == 0 and _fits(n, widths)]
    advice = f"mesh.fsdp={max(fitting)} would" if fitting else "a smaller mesh.fsdp may"
    return (
        f"mesh.fsdp={axis} splits {share:.0%} of the parameters not at all, or into shards of "
        f"fewer than {LEAST_ROWS} rows: the first is {bad[0]} {list(shapes[bad[0]])}; "
        f"{advice} do better"
    )


def _well_split(shape: tuple[int, ...], sharding: Any) -> bool:
    spec = sharding.spec
    where = [i for i, name in enumerate(spec) if name == "fsdp"]
    local = sharding.shard_shape(tuple(shape))
    return bool(where) and local[where[0]] >= LEAST_ROWS


def _fits(size: int, widths: list[int]) -> bool:
    return all(n % size == 0 and n // size >= LEAST_ROWS for n in widths if n >= size)

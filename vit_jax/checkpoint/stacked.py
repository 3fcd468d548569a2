"""Stacked (scanned) blocks <-> one subtree a block. Files always show the latter.

Works on NumPy and JAX arrays alike without importing JAX; the result is of the input's kind.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.tree import arrays, unflatten

_STACKED = re.compile(r"(?P<stem>(?:.*/)?(?:encoderblock|MixerBlock))/(?P<rest>.+)")
_BLOCK = re.compile(r"(?P<stem>(?:.*/)?(?:encoderblock|MixerBlock))_(?P<index>\d+)/(?P<rest>.+)")


def is_stacked(params: Mapping[str, Any]) -> bool:
    """Whether a nested or flat tree holds stacked blocks."""
    return any(_STACKED.fullmatch(name) for name in arrays(params))


def stacked_names(
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[str, int | None]]:
    """Unstacked name -> the stored one, and which of its layers (None: it is not stacked).

    Raises UserError when the stacked tensors of one stack differ in their number of layers.
    """
    names: dict[str, tuple[str, int | None]] = {}
    depths: dict[str, int] = {}
    for name, shape in shapes.items():
        if not (m := _STACKED.fullmatch(name)):
            names[name] = (name, None)
            continue
        depth = shape[0] if shape else 0
        if depths.setdefault(m["stem"], depth) != depth:
            raise UserError(
                f"{name!r} stacks {depth} layers, others below {m['stem']!r} {depths[m['stem']]}"
            )
        names |= {f"{m['stem']}_{i}/{m['rest']}": (name, i) for i in range(depth)}
    return names


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """`encoderblock/…` [layers, …] -> `encoderblock_0/… encoderblock_1/…`; others unchanged.

    Raises UserError when the stacked tensors of one stack differ in their number of layers.
    """
    flat = arrays(params)
    names = stacked_names({name: np.shape(x) for name, x in flat.items()})
    return unflatten(
        {new: flat[old] if i is None else flat[old][i] for new, (old, i) in names.items()}
    )


def stack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `unstack_blocks`: blocks 0 … n-1 become one subtree with a leading axis.

    Where there are several stacks, an encoder's and a decoder's, each has its own n.

    Raises UserError for a gap in the numbering or blocks that differ in names or shapes.
    """
    flat: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    depths: dict[str, int] = {}
    for name, x in arrays(params).items():
        if m := _BLOCK.fullmatch(name):
            stem, index = m["stem"], int(m["index"])
            stacks.setdefault(f"{stem}/{m['rest']}", {})[index] = x
            depths[stem] = max(depths.get(stem, 0), index + 1)
        else:
            flat[name] = x
    for name, layers in stacks.items():
        stem = m["stem"] if (m := _STACKED.fullmatch(name)) else ""
        depth = depths[stem]
        if sorted(layers) != list(range(depth)):
            raise UserError(f"cannot stack {name!r}: it has layers {sorted(layers)} of {depth}")
        xs = [layers[i] for i in range(depth)]
        if len({np.shape(x) for x in xs}) > 1:
            raise UserError(f"cannot stack {name!r}: shapes {[np.shape(x) for x in xs]}")
        flat[name] = _stack(xs)
    return unflatten(flat)


def _stack(xs: list[Any]) -> Any:
    # NumPy would bring JAX arrays to the host; their own namespace keeps them where they are.
    namespace = getattr(xs[0], "__array_namespace__", lambda: np)()
    return namespace.stack(xs)

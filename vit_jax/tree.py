"""Nested dicts <-> flat dicts with '/'-joined names."""

from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.errors import UserError


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by '/'-joined name. An empty dict is kept as a leaf, except at the root."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, name))
        else:
            flat[name] = value
    return flat


def arrays(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`flatten` without the empty dicts."""
    return {k: v for k, v in flatten(tree).items() if not isinstance(v, Mapping)}


def recover_tree(keys: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    """Nested dict from '/'-joined names and their values, as the original's.

    Raises UserError when a name is both a leaf and a branch.
    """
    tree: dict[str, Any] = {}
    for name, value in zip(keys, values, strict=True):
        *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(f"{name!r} lies below {part!r}, which is itself an array")
        if leaf in node:
            raise UserError(f"{name!r} is given twice, or is both an array and a branch")
        node[leaf] = value
    return tree


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict; the inverse of `flatten`."""
    return recover_tree(flat.keys(), flat.values())

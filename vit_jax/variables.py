"""A model's variables as one tree, under the names that files show.

A running statistic is named as a parameter is, by its module's path and its leaf, and lies beside
the parameters of its module: `stem/BatchNorm_0/{scale,bias,mean,var}`. The family's table says
which names are statistics, see `checkpoint.names.statistics`. No JAX here; leaves may be anything.
"""

from collections.abc import Collection, Mapping
from typing import Any

from vit_jax.tree import arrays, flatten, unflatten

__all__ = ["arrays", "collections", "is_variables", "named"]


def is_variables(tree: Mapping[str, Any]) -> bool:
    """Whether this is Flax's dict of collections, and not the tree of parameters alone."""
    return "params" in tree and set(tree) <= {"params", "batch_stats"}


def named(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The collections 'params' and 'batch_stats', if there is one, as one nested dict.

    A bare tree of parameters is returned as it is.
    """
    if not is_variables(variables):
        return dict(variables)
    return _merged(variables["params"], variables.get("batch_stats", {}))


def collections(tree: Mapping[str, Any], statistics: Collection[str]) -> dict[str, Any]:
    """The inverse of `named`: 'params' and 'batch_stats', which is {} where there are none.

    Args:
      tree: Nested or flat, running statistics among the parameters.
      statistics: The '/'-joined names of the running statistics.
    """
    flat = flatten(tree)
    return {
        "params": unflatten({n: x for n, x in flat.items() if n not in statistics}),
        "batch_stats": unflatten({n: x for n, x in flat.items() if n in statistics}),
    }


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    shared = one.keys() & other.keys()
    return {**one, **other, **{name: _merged(one[name], other[name]) for name in shared}}

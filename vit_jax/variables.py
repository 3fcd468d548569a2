"""A model's variables as one tree, under the names that files show.

A running statistic is named as a parameter is, by its module's path and its leaf, and lies beside
the parameters of its module: `stem/BatchNorm_0/{scale,bias,mean,var}`. The leaf alone tells which
it is, for no parameter is called `mean` or `var`. No JAX here; leaves may be anything.
"""

from collections.abc import Mapping
from typing import Any

STATISTICS = ("mean", "var")


def is_statistic(name: str) -> bool:
    """Whether a '/'-joined name is that of a running statistic, not of a parameter."""
    return name.rpartition("/")[2] in STATISTICS


def named(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The collections 'params' and 'batch_stats', if there is one, as one nested dict."""
    return _merged(variables["params"], variables.get("batch_stats", {}))


def collections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `named`: 'params' and 'batch_stats', which is {} where there are none."""
    return {"params": _part(tree, False), "batch_stats": _part(tree, True)}


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    shared = one.keys() & other.keys()
    return {**one, **other, **{name: _merged(one[name], other[name]) for name in shared}}


def _part(tree: Mapping[str, Any], statistics: bool) -> dict[str, Any]:
    part = {}
    for name, x in tree.items():
        if not isinstance(x, Mapping):
            if is_statistic(name) == statistics:
                part[name] = x
        elif inner := _part(x, statistics):
            part[name] = inner
    return part

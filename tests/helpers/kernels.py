"""Which kernels a function would run, read off its traced program."""

from collections.abc import Callable, Iterator
from typing import Any

import jax


def kernels(function: Callable[..., Any], *args: Any) -> list[str]:
    """Names of the Pallas kernels in `function(*args)`, in order; those of a loop's body once."""
    return [
        equation.params["name"]
        for equation in equations(jax.make_jaxpr(function)(*args))
        if equation.primitive.name == "pallas_call"
    ]


def equations(program: Any) -> Iterator[Any]:
    """Every equation of a traced program, and of the programs inside of it; a kernel is one."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation
        if equation.primitive.name == "pallas_call":
            continue
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from equations(value)


def _is_program(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")

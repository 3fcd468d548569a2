"""What a rematerialised block keeps for its backward pass, by name."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from vit_jax.errors import UserError, suggest

# Tensors of a block, by the names under which the layers mark them. Keeping them costs, a token,
# 3 D of queries, keys and values, D of the attention's output, the width of the hidden layer.
KEPT = ("qkv", "attention", "mlp")


def marked(program: Any) -> tuple[str, ...]:
    """Which of `KEPT` a traced program marks, in that order.

    Args:
      program: A jaxpr.
    """
    found = set(_marks(program))
    return tuple(name for name in KEPT if name in found)


def _marks(program: Any) -> Iterator[str]:
    for equation in program.eqns:
        if equation.primitive.name == "name":
            yield equation.params["name"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _marks(inner)


def save_only(names: str) -> Callable[..., Any]:
    """The policy for `jax.checkpoint` that keeps these names of `KEPT`, joined by commas.

    Raises:
      UserError: for an unknown name.
    """
    given = [name.strip() for name in names.split(",")]
    for name in given:
        if name not in KEPT:
            raise UserError(
                f"remat={names!r}: {name!r} is unknown.{suggest(name, KEPT)} Expected True, False, "
                f"or what is kept: {', '.join(KEPT)}, joined by commas"
            )
    return jax.checkpoint_policies.save_only_these_names(*given)

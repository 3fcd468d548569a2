"""What a rematerialised block keeps for its backward pass, by name."""

from collections.abc import Callable
from typing import Any

import jax

from vit_jax.errors import UserError, suggest

# Tensors of a block, by the names under which the layers mark them. Keeping them costs, a token,
# 3 D of queries, keys and values, D of the attention's output, the width of the hidden layer.
KEPT = ("qkv", "attention", "mlp")


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

"""What every text tower is: a module of tokens, which says in words what is wrong with them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vit_jax.errors import UserError

# What a text tower returns: its embedding, and what it computed on the way, by name.
Embedded = tuple[jax.Array, dict[str, jax.Array]]


class TextModel(nn.Module):
    """A module whose `__call__` takes tokens [N, L], integers, first.

    Where it is called with others, a UserError says what was expected and what came.
    """

    def __init_subclass__(cls, **kwargs: Any):
        if "__call__" in cls.__dict__:
            setattr(cls, "__call__", _checked(cls.__dict__["__call__"]))  # noqa: B010
        super().__init_subclass__(**kwargs)


def _checked(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def checked(self: nn.Module, tokens: Any, **kwargs: Any) -> Any:
        _require_tokens(tokens)
        return call(self, tokens, **kwargs)

    return checked


def _require_tokens(tokens: Any) -> None:
    shape, dtype = tuple(np.shape(tokens)), jnp.result_type(tokens)
    if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.integer):
        hint = "; add the axis of the batch, tokens[None]" if len(shape) == 1 else ""
        raise UserError(f"expected integer tokens [N, length], got {dtype} {list(shape)}{hint}")
    if not all(shape):
        raise UserError(
            f"expected at least one text of one token [N, length], got {list(shape)}; leave it out"
        )

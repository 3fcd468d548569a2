"""Types to compute in."""

from typing import Any

import jax
import jax.numpy as jnp


def wide_type(dtype: Any) -> Any:
    """float32 for a narrower type of floating point, and a wider type itself."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def widened(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is if it is wider."""
    return x.astype(wide_type(x.dtype))

"""A moving average of the parameters, for evaluation and export."""

from typing import Any

import jax
import jax.numpy as jnp


def ema_decay(step: Any, decay: float, *, warmup: bool) -> jax.Array:
    """Weight of the old average at an update, float32.

    Args:
      step: Updates done before this one.
      decay: The weight in the long run.
      warmup: Use min(decay, (1 + step) / (10 + step)), so that the first parameters are soon
        forgotten.
    """
    if not warmup:
        return jnp.asarray(decay, jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step)).astype(jnp.float32)


def update_ema(ema: Any, params: Any, decay: Any) -> Any:
    """decay · ema + (1 - decay) · params, leaf by leaf, in the types of `ema`."""
    # Not optax.incremental_update: written this way, the average of what does not change, a
    # frozen parameter, is that value to the last bit.
    return jax.tree.map(lambda e, p: (e + (1.0 - decay) * (p - e)).astype(e.dtype), ema, params)

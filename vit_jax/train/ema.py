"""A moving average of the parameters, for evaluation and export."""

from typing import Any

import jax
import jax.numpy as jnp


def ema_decay(step: Any, decay: float, *, warmup: bool) -> jax.Array:
    """The weight of the old average at an update, a float32 scalar.

    Args:
      step: The number of updates before this one.
      decay: The weight in the long run.
      warmup: Whether the weight is min(decay, (1 + step) / (10 + step)), so that the average soon
        forgets the first parameters.
    """
    if not warmup:
        return jnp.asarray(decay, jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step)).astype(jnp.float32)


def update_ema(ema: Any, params: Any, decay: Any) -> Any:
    """decay · ema + (1 - decay) · params for every leaf, in the types of `ema`."""
    # optax.incremental_update is not used, because the form below gives a frozen parameter an
    # average that equals the parameter to the last bit.
    return jax.tree.map(lambda e, p: (e + (1.0 - decay) * (p - e)).astype(e.dtype), ema, params)

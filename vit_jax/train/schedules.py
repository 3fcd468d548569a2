"""Learning rates as functions of the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from vit_jax.configs import common
from vit_jax.errors import UserError, chosen, suggest

Schedule = Callable[[Any], jax.Array]

DECAY_TYPES = ("cosine", "linear", "rsqrt", "constant")
# The share of the rate that is left when a share of the cooldown remains, both 0 to 1.
COOLDOWNS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda left: left,
    "1-sqrt": lambda left: 1.0 - jnp.sqrt(1.0 - left),
}


def create_learning_rate_schedule(
    total_steps: int,
    base: float,
    decay_type: str,
    warmup_steps: int,
    linear_end: float = 1e-5,
    *,
    timescale: int = 10_000,
    cooldown_steps: int = 0,
    cooldown_type: str = "linear",
) -> Schedule:
    """The product of a linear warm-up from 0, a decay, and a cooldown to 0.

    Args:
      total_steps: The step at which the decay and the cooldown end.
      base: The learning rate after the warm-up.
      decay_type: 'cosine' to 0; 'linear' to `linear_end`; 'rsqrt', one over the square root of
        `1 + (step - warmup_steps) / timescale` (Zhai et al. 2022, arXiv:2106.04560, section 3.5),
        which equals `step / timescale` if `timescale` is `warmup_steps`; or 'constant'.
      warmup_steps: The number of warm-up steps; 0 for none.
      linear_end: The final rate of 'linear'; the other decays ignore it.
      timescale: The number of steps that 'rsqrt' divides by.
      cooldown_steps: The number of last steps, over which the rate falls to 0; 0 for none.
      cooldown_type: 'linear'; or '1-sqrt', one minus the root of the share of the cooldown that is
        done (Hägele et al. 2024, arXiv:2405.18392).

    Returns:
      A function from a step, counted from 0, to a float32 scalar.

    Raises:
      UserError: for an unknown decay or cooldown, a negative warm-up, a cooldown that begins within
        it, or a timescale that is not positive. A warm-up as long as the run only logs a warning.
    """
    if decay_type not in DECAY_TYPES:
        raise UserError(
            f"decay_type={decay_type!r}; expected one of {DECAY_TYPES}."
            f"{suggest(decay_type, DECAY_TYPES)}"
        )
    cooldown = chosen(cooldown_type, COOLDOWNS, "cooldown_type")
    common.check({"warmup_steps": warmup_steps, "lr_timescale": timescale})
    if warmup_steps >= total_steps:
        # The original's formula takes the decay of such a run for finished from the start.
        ended = warmup_steps > total_steps and decay_type in ("cosine", "linear")
        logging.warning(
            "warmup_steps=%d is no less than total_steps=%d: the run ends within the warm-up, and "
            "%s",
            warmup_steps,
            total_steps,
            f"as in the original its learning rate is that of the end of the {decay_type} decay, "
            "which for 'cosine' is 0: nothing is learned"
            if ended
            else "never reaches its learning rate",
        )
    after = max(total_steps - warmup_steps, 0)
    if not 0 <= cooldown_steps <= after:
        raise UserError(
            f"cooldown_steps={cooldown_steps} must be from 0 to the {after} steps after the warm-up"
        )

    def schedule(step: Any) -> jax.Array:
        # This is the original's formula, also for a warm-up that is longer than the run.
        done = jnp.asarray(step - warmup_steps, jnp.float32)
        progress = jnp.clip(done / float(total_steps - warmup_steps), 0.0, 1.0)
        if decay_type == "linear":
            rate = linear_end + (base - linear_end) * (1.0 - progress)
        elif decay_type == "cosine":
            rate = base * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        elif decay_type == "rsqrt":
            rate = base / jnp.sqrt(1.0 + jnp.maximum(step - warmup_steps, 0) / timescale)
        else:
            rate = base
        if warmup_steps:
            rate = rate * jnp.minimum(1.0, step / warmup_steps)
        if cooldown_steps:
            left = jnp.clip((total_steps - step) / cooldown_steps, 0.0, 1.0)
            rate = rate * cooldown(left)
        return jnp.asarray(rate, jnp.float32)

    return schedule

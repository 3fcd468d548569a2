"""Learning-rate schedules and optimizers, from a run's config."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vit_jax.errors import UserError, suggest

Schedule = Callable[[Any], jax.Array]

DECAY_TYPES = ("cosine", "linear")


def create_learning_rate_schedule(
    total_steps: int, base: float, decay_type: str, warmup_steps: int, linear_end: float = 1e-5
) -> Schedule:
    """Linear warm-up from 0, times a decay over the steps that remain.

    Args:
      total_steps: Where the decay ends.
      base: Learning rate after the warm-up.
      decay_type: 'cosine' to 0, or 'linear' to `linear_end`.
      warmup_steps: 0 for no warm-up.

    Returns:
      A function from a step, counted from 0, to a float32 scalar.

    Raises:
      UserError: for an unknown decay, or a warm-up that leaves no step to decay over.
    """
    if decay_type not in DECAY_TYPES:
        raise UserError(f"decay_type={decay_type!r}; expected one of {DECAY_TYPES}")
    if not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"warmup_steps={warmup_steps} must be at least 0 and less than "
            f"total_steps={total_steps}"
        )

    def schedule(step: Any) -> jax.Array:
        progress = jnp.clip((step - warmup_steps) / float(total_steps - warmup_steps), 0.0, 1.0)
        if decay_type == "linear":
            rate = linear_end + (base - linear_end) * (1.0 - progress)
        else:
            rate = base * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        if warmup_steps:
            rate = rate * jnp.minimum(1.0, step / warmup_steps)
        return jnp.asarray(rate, jnp.float32)

    return schedule


def decayed(params: Any) -> Any:
    """True for what weight decay shrinks: kernels. Biases, norms and embeddings stay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _sgd(config: ConfigDict, rate: Schedule) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9, accumulator_dtype=config.optim_dtype)


def _adamw(config: ConfigDict, rate: Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate, mu_dtype=config.optim_dtype, weight_decay=config.weight_decay, mask=decayed
    )


_OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw}


def make_optimizer(config: ConfigDict, rate: Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then the optimizer that `config.optim` names.

    Raises:
      UserError: for an unknown optimizer or type, or a weight decay that would be ignored.
    """
    if config.optim not in _OPTIMIZERS:
        raise UserError(
            f"unknown optimizer {config.optim!r}.{suggest(config.optim, _OPTIMIZERS)} "
            f"Known: {', '.join(_OPTIMIZERS)}"
        )
    if config.optim_dtype not in ("float32", "bfloat16"):
        raise UserError(f"optim_dtype={config.optim_dtype!r}; expected 'float32' or 'bfloat16'")
    if config.weight_decay and config.optim != "adamw":
        raise UserError(f"weight_decay={config.weight_decay} needs optim='adamw'")
    optimizer = _OPTIMIZERS[config.optim](config, rate)
    if not config.grad_norm_clip:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.grad_norm_clip), optimizer)

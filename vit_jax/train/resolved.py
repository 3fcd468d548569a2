"""A config whose durations are whole steps, and whose learning rate is that of its batch."""

import math
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from vit_jax import durations
from vit_jax.configs.common import RANGES
from vit_jax.durations import Duration
from vit_jax.errors import chosen

# How the learning rate follows the ratio of the run's batch to the one that it is meant for.
LR_RULES = {"none": lambda ratio: 1.0, "linear": lambda ratio: ratio, "sqrt": math.sqrt}


def resolved(config: ConfigDict, epoch_images: int) -> ConfigDict:
    """A complete config in which every duration is a number of steps, but for those in time.

    `base_lr` becomes the rate of this batch, and `lr_scaling.rule` 'none', so that what was
    resolved once, as `run.json` has it, stays as it is.

    Args:
      config: A complete config with `total_steps`.
      epoch_images: The number of images in an epoch.

    Raises:
      UserError: for an unknown rule.
    """
    rule = chosen(config.lr_scaling.rule, LR_RULES, "config.lr_scaling.rule")
    found = config.copy_and_resolve_references().unlock()
    of = {"batch": config.batch, "epoch_images": epoch_images}
    total = of["total"] = durations.steps(config.total_steps, **of)
    with found.ignore_type():
        for field in (name for name, known in RANGES.items() if isinstance(known, Duration)):
            value: Any = found[field]
            if durations.seconds(value) is None:
                found[field] = durations.steps(value, **of)
        for entry in found.evals.values():
            every = config.eval_every if entry.every is None else entry.every
            entry.every = durations.steps(every, **of)
            entry.at = tuple(durations.steps(step, **of) for step in entry.at)
    for name, entry in found.evals.items():
        if late := [step for step in entry.at if step > total]:
            logging.warning("evals.%s.at=%s: the run has only %d steps", name, late, total)
    found.base_lr = config.base_lr * rule(config.batch / config.lr_scaling.batch)
    found.lr_scaling.rule = "none"
    return found.lock()

"""A run that begins with the whole state of another one: `config.resume_from`, 'RUN@STEP'.

The state is that of the optimizer too, and the step goes on from there, so that order of the data,
augmentation, dropout and learning rate are those of a run that had this config from the start. The
other run is only read.
"""

import os
import re
from collections.abc import Sequence

from absl import logging
from ml_collections import ConfigDict

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.train import checkpointing
from vit_jax.train.same_config import changed, require_same_classes
from vit_jax.train.state import TrainState

# What a branch must share with the run that it comes from, as its state is one of these. All else
# may differ; what does is logged.
SHARED = ("model", "optim", "optim_dtype", "pp.channels")


def parse(resume_from: str) -> tuple[str, int]:
    """The folder and the step of 'RUN@STEP'.

    Raises:
      UserError: for another form.
    """
    match = re.fullmatch(r"(.+)@(\d+)", resume_from)
    if match is None:
        raise UserError(
            f"config.resume_from={resume_from!r}; expected RUN@STEP, such as 'runs/a@120000'"
        )
    return match[1], int(match[2])


def check(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Raises UserError for a `resume_from` of another form, or one that names `workdir` itself."""
    if not config.resume_from:
        return
    run, _ = parse(config.resume_from)
    if _where(run) == _where(workdir):
        raise UserError(
            f"config.resume_from={config.resume_from!r} is --workdir itself: a branch is written "
            "to a folder of its own"
        )


def require_fit(config: ConfigDict, class_names: Sequence[str]) -> None:
    """Checks that this config can go on from the checkpoint `config.resume_from`, and logs how.

    Raises:
      UserError: for a run without such a checkpoint, or of other classes, another model or another
        optimizer; and for a step after which this config has nothing to train.
    """
    run, step = parse(config.resume_from)
    differing = changed(config, run)
    if refused := [text for name, text in differing.items() if _shared(name)]:
        raise UserError(
            f"config.resume_from={config.resume_from!r} cannot go on as this run: "
            f"{'; '.join(refused)}. {', '.join(SHARED)} must be the same"
        )
    require_same_classes(class_names, run, "A branch must have the classes of its run")
    steps, _ = checkpointing.stored_steps(run, None)
    if step not in steps:
        raise UserError(
            f"{run} has no checkpoint of step {step}; it has {steps}. config.keep_every keeps the "
            "checkpoints of its multiples for good"
        )
    left = config.total_steps - step
    if left <= 0:
        raise UserError(
            f"config.resume_from={config.resume_from!r}: nothing is left to train, "
            f"config.total_steps={config.total_steps}"
        )
    if config.cooldown_steps > left:
        logging.warning(
            "cooldown_steps=%d, but only %d steps are left: the rate begins within the cooldown",
            config.cooldown_steps,
            left,
        )
    logging.warning(
        "this run goes on from step %d of %s; other than there: %s",
        step,
        run,
        "; ".join(differing.values()) or "nothing",
    )


def branch(config: ConfigDict, like: TrainState) -> TrainState:
    """The state of the checkpoint `config.resume_from`, in the shardings of `like`.

    Raises:
      UserError: if names, shapes or types of the state differ from those of `like`.
    """
    run, step = parse(config.resume_from)
    return checkpointing.restore_step(run, step, like)


def _where(folder: str | os.PathLike) -> str:
    where = stores.absolute(folder).rstrip("/")
    return where if stores.is_address(folder) else os.path.realpath(where)


def _shared(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in SHARED)

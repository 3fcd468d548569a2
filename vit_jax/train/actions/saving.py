"""Saves the state when a checkpoint is due."""

import dataclasses

from vit_jax.train.actions import Action, Step
from vit_jax.train.actions.health import Health
from vit_jax.train.cadence import Due
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.clock import SAVING, Clock
from vit_jax.train.log import RunLog


class Saving(Action):
    """Saves the state after the steps at which it is due, and when the run is stopped.

    Args:
      checkpoints: Where the state is saved.
      due: Whether a checkpoint is due after a step; it is asked after every step.
      log: Where the time that it took is reported.
      clock: The clock of the run, which does not count saving as training.
      health: What judges the very state that is saved.
    """

    def __init__(
        self, checkpoints: Checkpoints, due: Due, log: RunLog, clock: Clock, health: Health
    ):
        self._checkpoints, self._due = checkpoints, due
        self._log, self._clock, self._health = log, clock, health

    def after(self, step: Step) -> None:
        due = self._due(step.number)  # asked at every step, so that all processes ask alike
        if step.stopping or due:
            self._health.examine(step)
            history = dataclasses.asdict(self._health.history)
            with self._clock.paused(SAVING) as span:
                self._checkpoints.save(step.state, step.figures, history)
                if step.stopping:
                    # What a run does at its end takes time, which this machine may not have.
                    self._checkpoints.wait()
            self._log.saved(span.seconds)

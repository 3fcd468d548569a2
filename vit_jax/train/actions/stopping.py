"""Ends a run that was told to stop."""

from vit_jax.errors import Preempted
from vit_jax.train.actions import Action, Step


class Stopping(Action):
    """Ends the run after the step at which it was told to stop; it comes after the saving."""

    def after(self, step: Step) -> None:
        if step.stopping:
            raise Preempted(step.number)

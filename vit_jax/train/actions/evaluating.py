"""Evaluates the model when an evaluation of the run is due."""

from collections.abc import Sequence

from vit_jax.errors import Preempted
from vit_jax.evaluate.kinds import Follow
from vit_jax.train.actions import Action, Step
from vit_jax.train.actions.health import Health
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.clock import EVALUATING, Clock
from vit_jax.train.evaluations import Named
from vit_jax.train.log import RunLog
from vit_jax.train.preemption import GivenUp
from vit_jax.train.state import TrainState


class Evaluating(Action):
    """Makes the evaluations that are due after a step, and reports each.

    A run that is told to stop has seconds to save its state. An evaluation that is due then, or
    under way, is left to the run that goes on, see `catch_up`.

    Args:
      evaluations: The evaluations of the run.
      follow: What their batches are passed through; it raises `GivenUp` when the run is to stop.
      log: Where the figures are reported.
      clock: The clock of the run, which does not count the evaluation as training.
      health: What judges the state before it is evaluated.
    """

    def __init__(
        self,
        evaluations: Sequence[Named],
        follow: Follow,
        log: RunLog,
        clock: Clock,
        health: Health,
    ):
        self._evaluations, self._follow = evaluations, follow
        self._log, self._clock, self._health = log, clock, health

    def after(self, step: Step) -> None:
        due = [one for one in self._evaluations if one.due(step.number, step.total)]
        if not due or step.stopping:
            return
        self._health.examine(step)
        figures = {}
        try:
            for one in due:
                found, seconds = self._evaluated(one, step.state)
                self._log.evaluation(step.number, one.name, found, seconds)
                figures |= found
        except GivenUp:
            step.stopping = True
        step.figures = figures or None

    def catch_up(
        self, number: int, total: int, state: TrainState, checkpoints: Checkpoints
    ) -> None:
        """Makes the evaluations that are due at the newest checkpoint and were not made.

        They were due when the run was stopped, or the config has named them since.

        Args:
          number: The step from which the run goes on.
          total: The number of steps of the whole run.
          state: The state after that step.
          checkpoints: The checkpoints of the run; the newest one gets the figures.

        Raises:
          Preempted: if the run is to stop again.
        """
        if checkpoints.latest_step != number:  # a run that begins, also as a branch of another
            return
        for one in self._evaluations:
            if not one.due(number, total) or self._log.evaluated(number, one.names):
                continue
            try:
                figures, seconds = self._evaluated(one, state)
            except GivenUp:
                raise Preempted(number) from None
            # Reported last: if the run is killed in between, the evaluation is made once more.
            checkpoints.add_figures(figures)
            self._log.evaluation(number, one.name, figures, seconds)

    def _evaluated(self, one: Named, state: TrainState) -> tuple[dict[str, float], float]:
        """The figures of an evaluation of a state, and the seconds that it took."""
        with self._clock.paused(EVALUATING) as span:
            figures = one.figures(state, self._follow)
        return figures, span.seconds

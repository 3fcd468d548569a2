"""Watches whether a run still learns."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax.errors import Diverged
from vit_jax.train.actions import Action, Step
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.health import History, Policy, RollBack
from vit_jax.train.log import RunLog
from vit_jax.train.state import TrainState
from vit_jax.tree import arrays
from vit_jax.variables import named

# Scalars of more steps than this are not kept on the devices.
_MOST_UNREAD = 100


class Health(Action):
    """Judges every step, without waiting for any: a step is judged when a later action asks for it.

    Reports, evaluations and checkpoints ask before they use a state, so that none of them is made
    of a ruined one. What is decided depends on the steps alone, and not on when it is asked for.

    Args:
      config: The config of the run.
      history: What is remembered of the run; this action goes on with it.
      checkpoints: The checkpoints of the run.
      log: Where is said what happens.
    """

    def __init__(self, config: ConfigDict, history: History, checkpoints: Checkpoints, log: RunLog):
        self.history = history
        self._policy = Policy.of(config)
        self._checkpoints, self._log = checkpoints, log
        self._unread: list[tuple[int, Any]] = []

    def after(self, step: Step) -> None:
        self._unread.append((step.number, (step.scalars["loss"], step.scalars["finite"])))
        if len(self._unread) >= _MOST_UNREAD:
            self.examine(step)

    def examine(self, step: Step) -> None:
        """Judges all steps until `step`; this waits for them.

        Raises:
          Diverged: if the run must end; the message says what is not finite.
          RollBack: if the run must go back to its newest checkpoint.
        """
        unread, self._unread = self._unread, []
        for number, (loss, finite) in jax.device_get(unread):
            skipped = self.history.skipped
            try:
                self._policy.judge(self.history, number, float(loss), bool(finite))
            except Diverged as end:
                self._checkpoints.wait()
                raise Diverged(f"{end}. {self._found(step.state)}") from None
            if self.history.skipped > skipped:
                self._log.say(
                    f"the update of step {number} is not finite and is left out; this run has "
                    f"left out {self.history.skipped}"
                )

    def go_back(self, stored: History, to: int, cause: RollBack) -> None:
        """Goes on from step `to`, of which the history `stored` was saved.

        Raises:
          Diverged: if the run went back to this step too often.
        """
        self.history = self._policy.go_back(self.history, stored, to, cause)
        self._unread = []
        left_out = self.history.rollbacks[-1]
        self._log.say(
            f"{cause}: back to step {to}, and on without the batches {left_out['first']} to "
            f"{left_out['last']}"
        )

    def _found(self, state: TrainState) -> str:
        """What the parameters say of the cause, and from where another run may go on."""
        variables = named(state.variables)
        flat = arrays(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), variables))
        bad = [name for name, finite in flat.items() if not finite]
        good = self._checkpoints.latest_step
        found = (
            f"{len(bad)} of {len(flat)} parameters are not finite after it, the first {bad[0]}."
            if bad
            else "All parameters are still finite: the forward pass, the batch or a norm that "
            "overflows is at fault."
        )
        left = f"The last good checkpoint is that of step {good}." if good else "No checkpoint yet."
        return (
            f"{found} {left} A lower base_lr, a longer warm-up or a smaller grad_norm_clip may "
            "help; on_nonfinite='skip' or 'rollback' goes on without what caused it"
        )

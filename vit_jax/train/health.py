"""Whether a run still learns: what is remembered of its course, and what follows from it.

Every decision is a function of the losses and of whether the updates were finite. All processes
read the same scalars, and so decide alike; a run that is resumed decides as the uninterrupted one.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any, Self

from ml_collections import ConfigDict

from vit_jax.errors import Diverged, UserError

POLICIES = ("stop", "skip", "rollback")


@dataclasses.dataclass
class History:
    """What a run remembers beside its state; it is saved in every checkpoint.

    Attributes:
      skipped: The number of updates that were left out.
      in_a_row: The number of updates that were left out one after the other until now.
      losses: The last losses, as many as `config.spike.window` asks for.
      offset: The number of batches that were left out: step n trains on batch n - 1 + offset.
      rollbacks: One entry for each time that the run went back: the 'step' that was bad and its
        'loss' (None if it was not finite), the step 'to' which it went back, and the numbers of the
        'first' and the 'last' batch that are left out.
    """

    skipped: int = 0
    in_a_row: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    offset: int = 0
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Self:
        """The history that a checkpoint holds; one without a history counts as uneventful."""
        return cls(**stored or {})


class RollBack(Exception):
    """The run must go back to its newest checkpoint, because of a spike or a ruined update.

    Attributes:
      step: The step that was bad.
      loss: Its loss.
    """

    def __init__(self, step: int, loss: float, reason: str):
        super().__init__(reason)
        self.step, self.loss = step, loss


@dataclasses.dataclass(frozen=True)
class Policy:
    """What follows a bad step, as the fields of the config say."""

    on_nonfinite: str
    max_skips: int
    max_rollbacks: int
    factor: float
    window: int

    @classmethod
    def of(cls, config: ConfigDict) -> Self:
        return cls(
            config.on_nonfinite,
            config.max_skips,
            config.max_rollbacks,
            config.spike.factor,
            config.spike.window,
        )

    def judge(self, history: History, step: int, loss: float, finite: bool) -> None:
        """Notes a step in the history.

        Args:
          history: The history until the step; it is changed.
          step: The number of the step.
          loss: The loss of the step.
          finite: Whether the update of the step is finite.

        Raises:
          Diverged: if the run must end.
          RollBack: if the run must go back.
        """
        if not finite:
            self._ruined(history, step, loss)
            return
        history.in_a_row = 0
        if not self.factor:
            return
        if len(history.losses) >= self.window:
            median = statistics.median(history.losses[-self.window :])
            if loss > self.factor * median:
                raise RollBack(
                    step,
                    loss,
                    f"the loss of step {step} is {loss:.4g}, which is more than {self.factor:g} "
                    f"times {median:.4g}, the median of the {self.window} losses before it",
                )
        history.losses = [*history.losses, loss][-self.window :]

    def _ruined(self, history: History, step: int, loss: float) -> None:
        reason = f"the update of step {step} is not finite (its loss is {loss:g})"
        if self.on_nonfinite == "rollback":
            raise RollBack(step, loss, reason)
        if self.on_nonfinite == "stop":
            raise Diverged(reason)
        history.skipped += 1
        history.in_a_row += 1
        if history.in_a_row >= self.max_skips:
            raise Diverged(
                f"{reason}, and it is the last of {history.in_a_row} such updates in a row"
            )

    def go_back(self, now: History, stored: History, to: int, cause: RollBack) -> History:
        """The history with which a run goes on after it went back.

        Args:
          now: The history at the bad step.
          stored: The history at the step to which the run goes back.
          to: The number of that step.
          cause: The bad step. Step `to + 1` trains on the batch after that of the bad step.

        Raises:
          Diverged: if the run went back to this step too often.
        """
        if sum(entry["to"] == to for entry in now.rollbacks) >= self.max_rollbacks:
            raise Diverged(
                f"{cause}, after {self.max_rollbacks} rollbacks to step {to}, which is all that "
                "max_rollbacks allows"
            )
        entry = {
            "step": cause.step,
            "loss": cause.loss if math.isfinite(cause.loss) else None,
            "to": to,
            "first": to + now.offset,
            "last": cause.step - 1 + now.offset,
        }
        return dataclasses.replace(
            stored,
            offset=now.offset + cause.step - to,
            rollbacks=[*now.rollbacks, entry],
        )


def check(config: ConfigDict) -> None:
    """Raises UserError for an unknown policy."""
    if config.on_nonfinite not in POLICIES:
        raise UserError(
            f"on_nonfinite={config.on_nonfinite!r}; expected one of {', '.join(POLICIES)}"
        )

"""What a run does before and after each training step.

Every action is a small class in a module of this folder. The loop does the actions one after the
other, in the order in which `vit_jax.train.loop` lists them.
"""

import contextlib
import dataclasses
from collections.abc import Mapping

import jax

from vit_jax.train.cadence import due
from vit_jax.train.state import TrainState


@dataclasses.dataclass
class Step:
    """A training step that was dispatched, as the actions after it see it.

    Attributes:
      number: The number of updates done, counted from 1.
      total: The number of updates of the whole run.
      state: The state after the update. The next step consumes it.
      scalars: What the step returned, still on the devices; reading a value waits for the step.
      stopping: Whether the run ends after this step, because it was told to. All processes agree.
      figures: The figures of an evaluation of this very state; None if there was none.
    """

    number: int
    total: int
    state: TrainState
    scalars: Mapping[str, jax.Array]
    stopping: bool = False
    figures: Mapping[str, float] | None = None

    def due(self, every: int) -> bool:
        """Whether something happens now that happens after every `every` steps, and at the end."""
        return due(self.number, every, self.total)


class Action(contextlib.AbstractContextManager):
    """Something that a run does around its steps; it is entered before the first of them."""

    def __exit__(self, *exc_info: object) -> None:
        """Ends what the action has begun, also when the run fails."""

    def before(self, number: int) -> None:
        """To be called before step `number` is dispatched."""

    def after(self, step: Step) -> None:
        """To be called after the step is dispatched; later actions see what this one changes."""

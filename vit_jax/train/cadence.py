"""When something is due in a run: every so many steps, or every so many minutes."""

import math
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax import durations

# (Step) -> whether it is due after this step; to be asked after every step, in every process.
Due = Callable[[int], bool]


def due(step: int, every: int, last: int) -> bool:
    """Whether something is due after `step` that is so every `every` steps, and after the last."""
    return step == last or bool(every and step % every == 0)


def saves(every: int | str, keep_every: int, last: int, first_step: int) -> Due:
    """When a checkpoint is saved.

    Args:
      every: A number of steps, or a text of time, such as '10min'.
      keep_every: A checkpoint of each multiple of this number is saved too; 0 for none.
      last: The number of steps of the run.
      first_step: The number of steps done when the run starts.
    """
    interval = durations.seconds(every)
    if interval is None:
        return lambda step: due(step, int(every), last) or due(step, keep_every, last)
    timed = EverySeconds(interval, first_step)

    def is_due(step: int) -> bool:
        passed = timed(step)  # asked at every step, so that all processes ask alike
        return passed or due(step, keep_every, last)

    return is_due


class EverySeconds:
    """What is due every so many seconds, at the same steps in every process.

    Clocks differ, so that the first process decides. To ask it at every step would make the
    processes wait for each other. It is asked only at steps that all of them know: each answer says
    when the next one is, half of the steps ahead that the remaining time is worth.

    Args:
      interval: Seconds.
      step: The number of steps done when the run starts.
      clock: The time in seconds.
    """

    def __init__(self, interval: float, step: int, clock: Callable[[], float] = time.monotonic):
        self._interval, self._clock = interval, clock
        self._since = clock()
        self._asked = step, self._since
        self._next = step + 1

    def __call__(self, step: int) -> bool:
        """Whether it is due after `step`."""
        if step < self._next:
            return False
        passed, wait = _first_process(self._answer(step))
        self._next = step + max(int(wait), 1)
        return bool(passed)

    def _answer(self, step: int) -> tuple[int, int]:
        """Whether the time has passed, and in how many steps to ask again."""
        now = self._clock()
        asked, before = self._asked
        self._asked = step, now
        a_step = max((now - before) / max(step - asked, 1), 1e-6)
        left = self._interval - (now - self._since)
        if passed := left <= a_step / 2:
            self._since, left = now, self._interval
        return int(passed), min(math.ceil(left / a_step / 2), 2**31 - 1)


def _first_process(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if jax.process_count() == 1:
        return numbers
    return tuple(multihost_utils.broadcast_one_to_all(np.array(numbers, np.int32)).tolist())

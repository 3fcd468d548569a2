"""The time that the parts of a run take."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator


@dataclasses.dataclass
class Span:
    """The time of a block of code in seconds, once the block is left."""

    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Pace:
    """The pace of training, as the mean over some steps.

    Attributes:
      step_seconds: The seconds that a step took, without evaluations and checkpoints.
      data_wait_seconds: The part of these seconds in which the run waited for its next batch.
      steps: The number of these steps.
    """

    step_seconds: float
    data_wait_seconds: float
    steps: int


# What a run does, in the words of messages; they are names in `config.watchdog` where one word.
WAITING, STEPPING = "waiting for data", "waiting for the step"
EVALUATING, SAVING = "evaluating", "saving"


class Clock:
    """Measures the pace of training, and the time of evaluations and checkpoints apart from it.

    Attributes:
      doing: What the run does now, and since when, in seconds of `time.monotonic`; another thread
        may read it.
    """

    def __init__(self):
        self._began = time.monotonic()
        self.doing = STEPPING, self._began
        self.restart(0)

    @property
    def seconds(self) -> float:
        """The seconds since the clock was made, which is when the run began."""
        return time.monotonic() - self._began

    def restart(self, step: int) -> None:
        """Measures the pace from now on, when `step` steps are done."""
        self._step, self._since, self._waited = step, time.monotonic(), 0.0

    def pace(self, step: int) -> Pace:
        """The pace since the previous call or restart; `step` steps are done, at least one more."""
        steps = step - self._step
        pace = Pace(
            max(time.monotonic() - self._since, 1e-9) / steps,
            self._waited / steps,
            steps,
        )
        self.restart(step)
        return pace

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as waiting for data."""
        with self._does(WAITING), _span() as span:
            yield
        self._waited += span.seconds

    @contextlib.contextmanager
    def paused(self, doing: str) -> Iterator[Span]:
        """Does not count the time of the block, in which the run is `doing` something else."""
        with self._does(doing), _span() as span:
            yield span
        self._since += span.seconds

    @contextlib.contextmanager
    def _does(self, doing: str) -> Iterator[None]:
        self.doing = doing, time.monotonic()
        try:
            yield
        finally:
            self.doing = STEPPING, time.monotonic()


@contextlib.contextmanager
def _span() -> Iterator[Span]:
    began, span = time.monotonic(), Span()
    yield span
    span.seconds = time.monotonic() - began

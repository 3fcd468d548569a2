"""What share of a run's time was spent on the steps that count."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Self


@dataclasses.dataclass
class Goodput:
    """Sums over all starts of a run, as its metrics carry them on.

    The time between the first start and now is all of it: starting, compiling, waiting in a queue
    after a preemption, evaluating, saving, and steps that were lost and made again.

    Attributes:
      trained: The seconds of the steps that count.
      began: The time of the first start, in seconds since 1970.
    """

    trained: float
    began: float

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, float]], now: float, seconds: float) -> Self:
        """That of a run with these lines of metrics, which `seconds` before `now` was started."""
        for line in reversed(lines):
            if "goodput" in line:
                run = 3600 * line["run_hours"]
                return cls(line["goodput"] * run, line["time"] - run)
        return cls(0.0, now - seconds)

    def add(self, seconds: float) -> dict[str, float]:
        """Counts `seconds` of steps, and returns the figures for a line of metrics."""
        self.trained += seconds
        now = time.time()
        run = max(now - self.began, 1e-9)
        return {"time": now, "run_hours": run / 3600, "goodput": min(self.trained / run, 1.0)}

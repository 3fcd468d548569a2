"""Times several things in turns, so that what disturbs the machine disturbs all of them."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Subject:
    """Something to time.

    Attributes:
      name: Who: 'vit_jax', 'timm'.
      run: One forward pass or one training step, which has ended when it returns.
      peak_memory: Bytes of the device so far; None where the device does not say.
    """

    name: str
    run: Callable[[], object]
    peak_memory: Callable[[], int | None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each run, and what they mean for a batch."""

    name: str
    seconds: tuple[float, ...]
    first_seconds: float
    batch: int
    peak_memory: int | None
    utilisation: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        return self.batch / self.median

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "median_seconds": self.median,
            "least_seconds": min(self.seconds),
            "most_seconds": max(self.seconds),
            "first_seconds": self.first_seconds,
            "images_per_second": self.images_per_second,
            "utilisation": self.utilisation,
            "peak_memory": self.peak_memory,
        }


def in_turns(subjects: Sequence[Subject], batch: int, rounds: int, warmup: int = 2) -> list[Timing]:
    """Runs each subject once a round.

    Args:
      batch: Images in a run.
      rounds: That are timed.
      warmup: Runs of each before that; the first one compiles.

    Raises:
      UserError: for a subject that runs out of memory.
    """
    first = [_seconds(subject) for subject in subjects]
    for _ in range(warmup - 1):
        for subject in subjects:
            _seconds(subject)
    times: list[list[float]] = [[] for _ in subjects]
    for _ in range(rounds):
        for subject, seconds in zip(subjects, times, strict=True):
            seconds.append(_seconds(subject))
    return [
        Timing(subject.name, tuple(seconds), compiling, batch, subject.peak_memory())
        for subject, seconds, compiling in zip(subjects, times, first, strict=True)
    ]


def _seconds(subject: Subject) -> float:
    start = time.perf_counter()
    try:
        subject.run()
    except RuntimeError as error:  # JAX's and PyTorch's errors both are.
        if any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "out of memory")):
            raise UserError(f"{subject.name} ran out of memory: a smaller --batch fits") from error
        raise
    return time.perf_counter() - start

"""The interface of a transform of a record, and a chain of transforms."""

import dataclasses
from typing import Any, Protocol

import numpy as np

Record = dict[str, Any]


class Transform(Protocol):
    """A function from a record to a new record; a random transform needs the generator `rng`."""

    def __call__(self, record: Any, rng: Any = None) -> Any: ...


def generator(rng: np.random.Generator | None, transform: Any) -> np.random.Generator:
    """The generator `rng` that a random transform was given.

    Raises:
      TypeError: if `rng` is None.
    """
    if rng is None:
        raise TypeError(f"{type(transform).__name__} is random: pass it a np.random.Generator")
    return rng


@dataclasses.dataclass(frozen=True)
class Chain:
    """Applies transforms one after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        for step in self.steps:
            record = step(record, rng)
        return record

"""What a transform is, and one after the other."""

import dataclasses
from typing import Any, Protocol

import numpy as np

Record = dict[str, Any]


class Transform(Protocol):
    """Maps a record to a new record; random ones need `rng`."""

    def __call__(self, record: Any, rng: Any = None) -> Any: ...


def generator(rng: np.random.Generator | None, transform: Any) -> np.random.Generator:
    """What a random transform draws from; a TypeError if it was given nothing."""
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

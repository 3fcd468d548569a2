"""The order of examples, as a function of their place in the stream.

The functions and views of Grain's datasets in this module say which record stands at which place,
and which place an example has in a batch. They keep no state: any place can be asked for.
"""

import bisect
import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import grain
import numpy as np

# --- records -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """`count` consecutive records of a source, and their weight beside its other parts."""

    count: int
    weight: float = 1.0


def shuffled(parts: Sequence[Part], window: int, seed: int) -> grain.MapDataset:
    """The numbers of the records of a source, endless, shuffled epoch by epoch.

    Every part is shuffled by itself, and starts its next epoch when all its records have come.

    Args:
      parts: The parts of the source, which follow one another.
      window: The number of places within which the parts are mixed, see `Mixed`.
      seed: Any integer.
    """
    seed %= 2**32
    if len(parts) == 1:
        return grain.MapDataset.range(parts[0].count).seed(seed).shuffle().repeat()
    seeds = np.random.SeedSequence(seed).generate_state(len(parts) + 1).tolist()
    epochs, start = [], 0
    for part, own_seed in zip(parts, seeds[1:], strict=True):
        numbers = grain.MapDataset.range(start, start + part.count)
        epochs.append(numbers.seed(own_seed).shuffle().repeat())
        start += part.count
    return Mixed(epochs, [part.weight for part in parts], window, seeds[0]).seed(seed)


class Mixed(grain.MapDataset):
    """Endless datasets, mixed in exact proportions.

    Every dataset gets its share of the first n places to less than one place if there are two
    datasets, and to less than three if there are up to nine (see `dealt`). The same holds for whole
    windows, within which the examples are then shuffled: a repeated pattern would let the same
    datasets always meet in Mixup, or in one part of a batch that is cut up.

    Args:
      parents: Endless datasets.
      weights: Their weights, above 0; decimal fractions are taken for what they say.
      window: The number of places within which examples are shuffled.
      seed: The seed of that, at least 0 and below 2**32.
    """

    def __init__(
        self,
        parents: Sequence[grain.MapDataset],
        weights: Sequence[float],
        window: int,
        seed: int,
    ):
        super().__init__(parents)
        exact = [Fraction(str(weight)) for weight in weights]
        unit = math.lcm(*(weight.denominator for weight in exact))
        self._bounds = [0, *itertools.accumulate(int(weight * unit) for weight in exact)]
        self._window, self._seed = window, seed

    def __len__(self) -> int:
        return sys.maxsize // self._window * self._window

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        window, place = divmod(index, self._window)
        places = _permutation(self._window, self._seed, window)
        number, place = dealt(window * self._window + int(places[place]), self._bounds)
        return self._parents[number][place]


@functools.lru_cache(maxsize=64)  # The examples of a window are asked for at about the same time.
def _permutation(count: int, seed: int, number: int) -> np.ndarray:
    return np.random.default_rng((seed, number)).permutation(count)


def dealt(place: int, bounds: Sequence[int]) -> tuple[int, int]:
    """The number of the dataset that gets a place, and how many places it got before.

    The datasets are cut into two groups of about the same weight. The first group gets ⌈n w⌉ of the
    first n places, where w is its share, which spreads its places evenly; the second group gets the
    others. The places of a group are dealt in the same way, until a group is one dataset.

    Args:
      place: The place, from 0.
      bounds: 0, and the sum of the weights of the first dataset, of the first two, and so on.
    """
    low, high = 0, len(bounds) - 1
    while high - low > 1:
        middle = bisect.bisect(bounds, (bounds[low] + bounds[high]) // 2, low + 1, high - 1)
        total, second = bounds[high] - bounds[low], bounds[high] - bounds[middle]
        others, others_after = (n * second // total for n in (place, place + 1))
        if others == others_after:
            high, place = middle, place - others
        else:
            low, place = middle, others
    return low, place


# --- batches -------------------------------------------------------------------------------------


class LocalRows(grain.MapDataset):
    """The `rows` examples that host number `process_index` reads of every global batch."""

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, batch_size: int, process_index: int, rows: int):
        super().__init__(parent)
        self._batch_size = batch_size
        self._rows = rows
        self._first = process_index * rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._rows)
        return self._parent[batch * self._batch_size + self._first + row]


class Repeated(grain.MapDataset):
    """Batches that hold each image `times` times (Hoffer et al. 2019, arXiv:1901.09335).

    A batch of N examples holds the next U = ⌈N / times⌉ images: first one copy of each of them,
    then a second copy of each, and so on, so that copy r of image i stands at place r U + i. Mixing
    combines an example with its neighbour in the batch, which is therefore another image. If
    `times` does not divide N, the batch ends before the last round of copies does, and the last
    images have one copy less.
    """

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, batch_size: int, times: int):
        super().__init__(parent)
        self._batch_size, self._images = batch_size, -(-batch_size // times)

    def __len__(self) -> int:
        return len(self._parent)  # The parent repeats endlessly, and so does this view.

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, self._batch_size)
        return self._parent[batch * self._images + place % self._images]

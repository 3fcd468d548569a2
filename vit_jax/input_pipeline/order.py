"""Which example stands where in a batch: views of Grain's datasets."""

from typing import Any

import grain


class LocalRows(grain.MapDataset):
    """Of every global batch's examples, the `rows` that host number `process_index` reads."""

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
    """Batches in which an image comes `times` times (Hoffer et al. 2019, arXiv:1901.09335).

    A batch of N holds the next U = ⌈N / times⌉ images, one copy of each after the other, and then
    all of them again: copy r of image i stands at r U + i. Mixing, which takes an example's
    neighbour, so meets another image. Where `times` does not divide N the round of the last copies
    ends early, and the last images of the batch have one copy less.
    """

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, batch_size: int, times: int):
        super().__init__(parent)
        self._batch_size, self._images = batch_size, -(-batch_size // times)

    def __len__(self) -> int:
        return len(self._parent)  # Without end.

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, self._batch_size)
        return self._parent[batch * self._images + place % self._images]

"""Views of Grain's datasets that choose the place of each example in a batch."""

from typing import Any

import grain


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

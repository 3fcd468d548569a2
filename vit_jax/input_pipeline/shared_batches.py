"""Passes batches from worker processes through pieces of shared memory that are used again.

Grain would share a new piece of memory for every batch. To find and clear the pages of a new piece,
in both processes, has been seen to take more than half as long as to decode and augment the images
in it. In this module a worker writes a batch into the first of its pieces that is free, and the
reader copies the batch out and thereby frees the piece. A worker so needs only as many pieces as it
has batches that are written and not yet read.
"""

import dataclasses
import mmap
import os
import tempfile
from typing import Any

import grain
import numpy as np

from vit_jax.errors import UserError

Batch = dict[str, np.ndarray]

_MEMORY = "/dev/shm"  # Files here lie in memory; files elsewhere are cached, which is as fast.
_ALIGNMENT = 64
_FREE, _TAKEN = 0, 1  # Values of a piece's first byte.


@dataclasses.dataclass(frozen=True)
class Field:
    """The place of one array of the batch in a piece; `offset` is in bytes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def array(self, piece: mmap.mmap) -> np.ndarray:
        """The array as a view of the piece's memory."""
        return np.ndarray(self.shape, self.dtype, piece, self.offset)


@dataclasses.dataclass(frozen=True)
class Sent:
    """The message that a worker sends for a batch: the path of the piece, and its arrays."""

    path: str
    fields: tuple[Field, ...]


def directory() -> tempfile.TemporaryDirectory:
    """A folder for the pieces of one stream.

    The folder is deleted when the returned object is cleaned up or garbage collected.
    """
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="vit_jax_", dir=place)


class Outbox(grain.MapDataset):
    """The worker's side, which writes each batch of examples into a free piece.

    Every example is written as soon as it is made. A worker that collected a batch of examples
    first would need new pages of memory for each batch, because the system takes the pages back
    when the examples are freed.

    Args:
      examples: Dictionaries of arrays; an array has the same shape in all examples.
      rows: Number of examples in a batch.
      place: Folder for the pieces.
    """

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, examples: grain.MapDataset, rows: int, place: str):
        super().__init__(examples)
        self._rows, self._place = rows, place
        self._pieces: dict[str, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self._parent) // self._rows

    def __getitem__(self, index: Any) -> Any:
        """Writes batch number `index` and returns its `Sent`; calls must not overlap.

        Raises:
          UserError: if there is no memory for another piece.
          ValueError: if an example's shapes differ from the first one's.
        """
        if isinstance(index, slice):
            return self.slice(index)
        start = index * self._rows
        first = self._parent[start]
        fields, size = _layout(first, self._rows)
        path = self._free(size)
        piece = self._pieces[path]
        piece[0] = _TAKEN
        arrays = {field.name: field.array(piece) for field in fields}
        for row in range(self._rows):
            example = self._parent[start + row] if row else first
            for name, array in arrays.items():
                # `array[row] = …` would broadcast an example that is too small; `stack` refuses it.
                np.stack([example[name]], out=array[row : row + 1])
        return Sent(path, fields)

    def _free(self, size: int) -> str:
        for path, piece in self._pieces.items():
            if piece[0] == _FREE and len(piece) >= size:
                return path
        file, path = tempfile.mkstemp(dir=self._place)
        try:
            _allocate(file, size)
            self._pieces[path] = mmap.mmap(file, size)
        except OSError as error:
            raise UserError(
                f"no memory in {os.path.dirname(self._place)} for a batch of {size} bytes: "
                f"{error.strerror}; make it larger (docker run --shm-size), or set smaller "
                "config.batch or config.prefetch, or config.data.num_workers = 0"
            ) from error
        finally:
            os.close(file)
        return path


class Inbox:
    """The reader's side, which takes the batches of all workers."""

    def __init__(self):
        self._pieces: dict[str, mmap.mmap] = {}

    def open(self, sent: Sent) -> Batch:
        """Copies a batch out of its piece, and marks the piece as free."""
        piece = self._pieces.get(sent.path)
        if piece is None:
            with open(sent.path, "r+b") as file:
                piece = self._pieces[sent.path] = mmap.mmap(file.fileno(), 0)
            # Both processes have mapped the file. Without a name it is deleted when they end,
            # however they end.
            os.unlink(sent.path)
        batch = {field.name: field.array(piece).copy() for field in sent.fields}
        piece[0] = _FREE
        return batch


def _layout(example: Batch, rows: int) -> tuple[tuple[Field, ...], int]:
    """The fields of a piece that holds `rows` such examples, and the size of the piece in bytes."""
    fields, offset = [], _ALIGNMENT
    for name, value in example.items():
        value = np.asarray(value)
        fields.append(Field(name, value.dtype, (rows, *value.shape), offset))
        offset += -(-value.nbytes * rows // _ALIGNMENT) * _ALIGNMENT
    return tuple(fields), offset


def _allocate(file: int, size: int) -> None:
    """Reserves the memory now.

    Writing to a piece whose memory is not reserved kills the process if no memory is left.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS.
        os.ftruncate(file, size)

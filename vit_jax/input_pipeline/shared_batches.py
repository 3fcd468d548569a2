"""Batches from worker processes, through memory that is used again.

Grain would share a new piece of memory for every batch. Finding and clearing its pages, on both
sides, has been seen to take more than half as long as decoding and augmenting the images in it.
Here a worker writes a batch into the first of its pieces that is free, and the reader copies it
out, which frees the piece: there are as many as batches are on their way.
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

_MEMORY = "/dev/shm"  # Files here are memory; elsewhere they are cached, which is as good.
_ALIGNMENT = 64
_FREE, _TAKEN = 0, 1  # A piece's first byte.


@dataclasses.dataclass(frozen=True)
class Field:
    """Where in a piece one array of the batch lies, `offset` in bytes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def array(self, piece: mmap.mmap) -> np.ndarray:
        """The array in place."""
        return np.ndarray(self.shape, self.dtype, piece, self.offset)


@dataclasses.dataclass(frozen=True)
class Sent:
    """What a worker sends for a batch."""

    path: str
    fields: tuple[Field, ...]


def directory() -> tempfile.TemporaryDirectory:
    """A place for the pieces of one stream, which is gone when it is cleaned up or forgotten."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="vit_jax_", dir=place)


class Outbox(grain.MapDataset):
    """A worker's side: batches of examples, each written into a free piece.

    Every example is written as soon as it is made. To hold a batch of them first would cost the
    memory's pages once more, which the system takes back when a batch of them is let go.

    Args:
      examples: Dictionaries of arrays, which have the same shapes in all examples.
      rows: Examples of a batch.
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
        """Number `index`, as `Sent`; one call at a time.

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
                # `array[row] = …` would repeat what is too small.
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
    """The reader's side of all workers."""

    def __init__(self):
        self._pieces: dict[str, mmap.mmap] = {}

    def open(self, sent: Sent) -> Batch:
        """Copies a batch out of its piece, which is free from then on."""
        piece = self._pieces.get(sent.path)
        if piece is None:
            with open(sent.path, "r+b") as file:
                piece = self._pieces[sent.path] = mmap.mmap(file.fileno(), 0)
            # Both sides have it: without a name it cannot outlive them, whatever ends them.
            os.unlink(sent.path)
        batch = {field.name: field.array(piece).copy() for field in sent.fields}
        piece[0] = _FREE
        return batch


def _layout(example: Batch, rows: int) -> tuple[tuple[Field, ...], int]:
    """The fields of a piece for so many examples, and its size in bytes."""
    fields, offset = [], _ALIGNMENT
    for name, value in example.items():
        value = np.asarray(value)
        fields.append(Field(name, value.dtype, (rows, *value.shape), offset))
        offset += -(-value.nbytes * rows // _ALIGNMENT) * _ALIGNMENT
    return tuple(fields), offset


def _allocate(file: int, size: int) -> None:
    """Makes room now: written later, memory that is not there would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS.
        os.ftruncate(file, size)

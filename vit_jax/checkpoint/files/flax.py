"""Flax's msgpack files, which the original's runs left as `checkpoint_N`. Neither JAX nor Flax.

MessagePack maps nest as the state did; an array is an extension of type 1 (a scalar: type 3) that
holds (shape, name of the dtype, bytes), and one of more than 1 GB a map of its pieces. Nothing in
such a file can run.
"""

import mmap
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401 (makes NumPy know 'bfloat16')
import msgpack
import numpy as np

from vit_jax.checkpoint.files.archive import BFLOAT16, Archive, Spec, reading
from vit_jax.errors import UserError

_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"


class FlaxFile(Archive):
    """The arrays of a Flax msgpack file by '/'-joined name, all read at once.

    Raises:
      UserError: if the file cannot be read, is damaged or holds anything but numbers.
    """

    format = "flax"

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        self._tensors: dict[str, np.ndarray] = {}
        with reading(self.path, self.format), open(self.path, "rb") as f:
            # Mapped, so that its bytes are in memory once: as arrays.
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                # No length in the file can exceed the file's own: the library sees to that.
                tree = msgpack.unpackb(data, ext_hook=_extension, strict_map_key=False)
            if not isinstance(tree, Mapping):
                raise UserError(f"{str(self.path)!r} holds no tree of parameters")
            for name, x in _leaves(tree):
                if name in self._tensors:
                    raise UserError(f"{str(self.path)!r}: {name!r} is stored twice")
                self._tensors[name] = x
                self.specs[name] = Spec(x.shape, x.dtype)

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name]


def _extension(code: int, data: bytes) -> Any:
    if code not in (_ARRAY, _SCALAR):
        return None
    try:
        shape, dtype_name, buffer = msgpack.unpackb(data, raw=True)
        dtype = np.dtype(dtype_name.decode())
        if dtype != BFLOAT16 and dtype.kind not in "fiub":
            raise UserError(f"an array of dtype {dtype}; expected numbers")
        return np.frombuffer(buffer, dtype).reshape(shape)
    except (AttributeError, TypeError) as error:  # what stands there is no shape, name and bytes
        raise UserError(f"an array is described as no array is: {error}") from error


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Arrays and numbers by '/'-joined name; whatever else there is holds no numbers."""
    if isinstance(tree, Mapping) and _CHUNKED in tree:
        yield name, _joined(tree)
    elif isinstance(tree, Mapping | list):
        pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in pairs:
            yield from _leaves(value, f"{name}/{key}" if name else str(key))
    elif isinstance(tree, np.ndarray | bool | int | float):
        yield name, np.asarray(tree)


def _joined(pieces: Mapping[str, Any]) -> np.ndarray:
    shape, chunks = (
        [pieces[field][str(i)] for i in range(len(pieces[field]))] for field in ("shape", "chunks")
    )
    return np.concatenate(chunks).reshape(shape)

"""Tensors on their way to a file: the next one is read while one is written, in C order."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from vit_jax.checkpoint.files.archive import as_bytes

T = TypeVar("T")
_PIECE = 1 << 20  # bytes: a piece that is written is still in the processor's cache
_LINE = 16  # rows: fewer would read less of each line of memory than comes into the cache


@contextlib.contextmanager
def ahead(make: Callable[[str], T], names: Sequence[str]) -> Iterator[Iterator[T]]:
    """`make` of every name, in order; while one is used, a thread makes the next.

    No more than two are in memory, if the caller lets go of one before it asks for the next. At the
    end of the block the thread is gone.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield _ahead(thread, make, names)


def _ahead(
    thread: ThreadPoolExecutor, make: Callable[[str], T], names: Sequence[str]
) -> Iterator[T]:
    coming: deque[Future[T]] = deque()
    for name in names:
        coming.append(thread.submit(make, name))
        if len(coming) > 1:
            yield coming.popleft().result()
    if coming:
        yield coming.popleft().result()


def contiguous(x: np.ndarray) -> np.ndarray:
    """`x` in C order, a copy only if need be."""
    matrix = _transposed(x)
    if matrix is None:
        return np.asarray(x, order="C")
    out = np.empty(x.shape, x.dtype)
    _transpose(matrix, out.reshape(matrix.shape[::-1]))
    return out


def pieces(x: np.ndarray) -> Iterator[memoryview]:
    """The bytes of `x` in C order, piece by piece; each is overwritten by the next.

    What lies in another order is never copied as a whole.
    """
    matrix = _transposed(x)
    if matrix is None:
        yield as_bytes(np.asarray(x, order="C"))
        return
    columns, width = matrix.shape
    height = max(_LINE, _PIECE // (columns * x.itemsize))
    buffer = np.empty((height, columns), x.dtype)
    for i in range(0, width, height):
        part = buffer[: width - i]
        _transpose(matrix[:, i : i + height], part)
        yield as_bytes(part)


def _transposed(x: np.ndarray) -> np.ndarray | None:
    """The matrix in C order of which `x` is the transpose, its axes grouped in two; else None."""
    if x.flags.c_contiguous or not x.size:
        return None
    for split in range(1, x.ndim):
        first = int(np.prod(x.shape[:split]))
        try:
            matrix = x.reshape(first, -1, copy=False).T
        except ValueError:  # these axes do not lie as one
            continue
        if matrix.flags.c_contiguous:
            return matrix
    return None


def _transpose(matrix: np.ndarray, out: np.ndarray) -> None:
    """Writes the transpose of a matrix, whatever its numbers: OpenCV sees pixels of some bytes.

    It takes a quarter of the time that NumPy's copy needs, which knows no blocks.
    """
    import cv2

    def pixels(x: np.ndarray) -> np.ndarray:
        return x.view(np.uint8).reshape(*x.shape, x.itemsize)

    cv2.transpose(pixels(matrix), dst=pixels(out))

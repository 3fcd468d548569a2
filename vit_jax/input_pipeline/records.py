"""What a source of examples is, and how it reads a file."""

import os
from collections.abc import Callable
from typing import Protocol, TypedDict

import numpy as np

from vit_jax.errors import UserError

PathLike = str | os.PathLike[str]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class Record(TypedDict):
    """One example as stored; `image` is an array only under `tfds.testing.mock_data`."""

    image: bytes | np.ndarray
    label: int | list[int]  # A list where images may have several.
    # For error messages: a path, or 'dataset[split] example 3 (file name)', the file where known.
    name: str


class Source(Protocol):
    """A random-access sequence of records that knows its classes."""

    num_classes: int
    int2str: Callable[[int], str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


def read_image(path: str) -> bytes:
    """A file's bytes; UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error

"""The interface of a source of examples, and a function that reads an image file."""

import os
from collections.abc import Callable
from typing import Protocol, TypedDict

import numpy as np

from vit_jax.errors import UserError

PathLike = str | os.PathLike[str]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class Record(TypedDict):
    """One example as it is stored.

    `image` holds the encoded bytes of the file, and an array only under `tfds.testing.mock_data`.
    """

    image: bytes | np.ndarray
    label: int | list[int]  # The label is a list if images may have several labels.
    # Name for error messages: a path, or 'dataset[split] example 3 (file name)' for TFDS, whose
    # records may lack the file name.
    name: str


class Source(Protocol):
    """A random-access sequence of records that knows its classes."""

    num_classes: int
    int2str: Callable[[int], str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


def read_image(path: str) -> bytes:
    """The bytes of a file.

    Raises:
      UserError: if the file cannot be read; the message names it.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error

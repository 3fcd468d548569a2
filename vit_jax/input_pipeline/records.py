"""The interface of a source of examples, a view of some of them, and the reading of image files."""

import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypedDict

import numpy as np

from vit_jax import stores
from vit_jax.errors import UserError

PathLike = str | os.PathLike[str]

# Names of the test split. If the given name does not exist, the others are tried in this order.
TEST_SPLITS = ("test", "val", "validation", "valid")

# Suffixes, in small letters, of the files that Pillow reads by itself. Left out are what needs
# another program (Ghostscript for EPS, Windows for WMF) and what Pillow only recognises (videos).
# fmt: off
IMAGE_SUFFIXES = frozenset([
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit",
    ".fits", ".flc", ".fli", ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".iim", ".im",
    ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo",
    ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".pxr", ".qoi",
    ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm",
    ".xpm",
])
# fmt: on


class Record(TypedDict):
    """One example as it is stored.

    `image` holds the encoded bytes of a file, or pixels where the source holds pixels: an array
    uint8 [height, width, channels].
    """

    image: bytes | np.ndarray
    label: int | list[int]  # The label is a list if images may have several labels.
    # Name for error messages: a path, or 'dataset[split] example 3 (file name)' for TFDS, whose
    # records may lack the file name.
    name: str


class Source(Protocol):
    """A random-access sequence of records that knows its classes.

    Attributes:
      num_classes: Number of classes; 0 if the images have no labels.
      int2str: Function from the number of a class to its name.
      description: What is read, for people: the path of a folder or file, or 'dataset[split]'.
    """

    num_classes: int
    int2str: Callable[[int], str]
    description: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


class LabelledSource(Source, Protocol):
    """A source that knows the labels of all its records without reading an image."""

    @property
    def labels(self) -> Sequence[int] | Sequence[list[int]]: ...


class Subset:
    """Some records of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: Sequence[int], description: str | None = None):
        self._source, self._indices = source, indices
        self.num_classes, self.int2str = source.num_classes, source.int2str
        self.description = source.description if description is None else description

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[self._indices[index]]


def has_several_labels(source: Source) -> bool:
    """Whether images may have several labels or none; the first record tells it of all."""
    return isinstance(source[0]["label"], list)


def read_image(path: str) -> bytes:
    """The bytes of a file.

    Raises:
      UserError: if the file cannot be read; the message names it.
    """
    try:
        return stores.read_bytes(path)
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error

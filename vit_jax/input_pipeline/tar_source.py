"""WebDataset's tar files as a source whose records are read at random, without unpacking them.

The headers of all members are read once, when the files are opened, and say where each image lies.
That passes over the images themselves, and takes seconds for a million of them on a disk.
"""

import glob
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import classes
from vit_jax.input_pipeline.preparing import inputs as preparing
from vit_jax.input_pipeline.preparing.webdataset import SUFFIXES, WebDatasetFile
from vit_jax.input_pipeline.records import Record

_SUFFIX = ".tar"


def is_tar(given: str) -> bool:
    """Whether an argument names tar files of samples, by their suffix."""
    return given.lower().endswith(SUFFIXES)


def tar_files(given: Sequence[str]) -> list[str]:
    """The paths of the tar files that arguments name, in their order.

    Args:
      given: Paths or patterns, with `*`, `?`, `{000..146}` and `{a,b}` for parts of names.

    Raises:
      UserError: if a pattern matches nothing, or what is named is no tar that is not compressed.
    """
    patterns = [one for pattern in given for one in preparing.expanded(os.path.expanduser(pattern))]
    paths = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not found or not os.path.isfile(found[0]):
            raise UserError(f"there is no tar file {pattern}")
        paths += found
    if others := [path for path in paths if not path.lower().endswith(_SUFFIX)]:
        raise UserError(
            f"expected tar files that are not compressed, alone; got {some(others)}. Of compressed "
            f"ones `vit-jax prepare {others[0]} --to FOLDER` makes a dataset to name in their place"
        )
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice} is named twice")
    return paths


class TarSource:
    """The samples of tar files, in their order, with labels where the files tell them.

    If all samples have one label, it is that; otherwise the label of a record is the list of its
    labels, as for an image that may have several. The classes are the distinct labels, in the order
    of `classes.ordered`.

    Args:
      paths: Of the tar files.

    Raises:
      UserError: if a file is missing, damaged, compressed or without a sample.
    """

    def __init__(self, paths: Sequence[str]):
        self.description = some(paths, 2)
        self._paths = list(paths)
        found = [(n, *one) for n, path in enumerate(paths) for one in WebDatasetFile(path).places()]
        if not found:
            raise UserError(f"no samples in {self.description}")
        files, self.names, places, labels = zip(*found, strict=True)
        self._files = np.array(files, np.int32)
        # A sample without an image has no place, which shows when it is read.
        self._places = np.array([place or (-1, 0) for place in places], np.int64)
        self._class_names = classes.ordered({name for names in labels for name in names})
        self.num_classes = len(self._class_names)
        numbers = {name: number for number, name in enumerate(self._class_names)}
        rows = [[numbers[name] for name in names] for names in labels]
        one_each = all(len(row) == 1 for row in rows)
        self.labels: list[Any] = [row[0] for row in rows] if one_each else rows

    def int2str(self, label: int) -> str:
        """The name of class number `label`."""
        return self._class_names[label]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        offset, size = self._places[index].tolist()
        if offset < 0:
            raise UserError(f"{self.names[index]} has no image")
        path = self._paths[self._files[index]]
        try:
            # Opened anew each time: thousands of files are more than a process may hold open.
            with open(path, "rb", buffering=0) as file:
                image = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        return {"image": image, "label": self.labels[index], "name": self.names[index]}

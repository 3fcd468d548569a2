"""Weights that lie in several files, and an index that says which tensor is in which."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np

from vit_jax.checkpoint.files.archive import Archive, reading
from vit_jax.errors import UserError

INDEX = ".index.json"  # what the name of an index ends with
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d+)-of-(?P<parts>\d+)(?P<suffix>\.\w+)")


class Shards(Archive):
    """The tensors of all files that an index names.

    Args:
      path: The index: JSON whose `weight_map` has the file's name of every tensor.
      open_part: Opens one of the files.

    Raises:
      UserError: for an index that is damaged, or a file or a tensor that is missing.
    """

    def __init__(self, path: str | os.PathLike, open_part: Callable[[pathlib.Path], Archive]):
        super().__init__(path)
        self._parts: dict[str, Archive] = {}
        with reading(self.path, "index"):
            where = json.loads(self.path.read_text())["weight_map"]
            self._where = {str(name): str(file) for name, file in where.items()}
        try:
            self._open(open_part)
        except BaseException:
            self.close()
            raise

    def _open(self, open_part: Callable[[pathlib.Path], Archive]) -> None:
        files = sorted(set(self._where.values()))
        lost = [
            f for f in files if pathlib.Path(f).name != f or not (self.path.parent / f).exists()
        ]
        if lost:
            raise UserError(
                f"{str(self.path)!r} names {len(files)} files of weights, of which {len(lost)} are "
                f"not beside it: {', '.join(lost[:5])}"
            )
        for file in files:
            part = self._parts[file] = open_part(self.path.parent / file)
            self.format = part.format
            self.metadata |= part.metadata
        for name, file in self._where.items():
            if name not in self._parts[file]:
                raise UserError(f"{file!r} does not hold {name!r}, as {self.path.name!r} says")
            self.specs[name] = self._parts[file].specs[name]
        self.files = (self.path, *(self.path.parent / f for f in files))

    def read(self, name: str) -> np.ndarray:
        return self._parts[self._where[name]].read(name)

    def close(self) -> None:
        for part in self._parts.values():
            with contextlib.suppress(OSError):
                part.close()


def require_whole(path: pathlib.Path) -> None:
    """Raises UserError for one file of several, which the others and an index belong to."""
    match = _PART.fullmatch(path.name)
    if match is None or int(match["parts"]) < 2:
        return
    index = path.with_name(f"{match['stem']}{match['suffix']}{INDEX}")
    what = str(index if index.exists() else path.parent)
    raise UserError(
        f"{str(path)!r} is part {int(match['part'])} of {int(match['parts'])} of the weights. Give "
        f"the whole: {what!r}"
        + ("" if index.exists() else f", where the others and {index.name} must lie")
    )

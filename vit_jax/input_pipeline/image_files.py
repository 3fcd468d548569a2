"""Finds the image files in a folder and in all folders below it."""

import collections
import functools
import os
from collections.abc import Iterator

from absl import logging

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.input_pipeline.records import IMAGE_SUFFIXES, PathLike

_KINDS_SHOWN = 8
LeftOut = collections.Counter[str]


def subfolders(directory: PathLike) -> list[str]:
    """The sorted names of the folders directly in a folder, without hidden ones.

    Raises:
      UserError: if the folder cannot be read.
    """
    return sorted(entry.name for entry in _entries(directory) if _visible_folder(entry))


def images_in(directory: PathLike, left_out: LeftOut) -> list[str]:
    """The sorted paths of the images that lie directly in a folder.

    A file is an image if its suffix is one of `IMAGE_SUFFIXES`, in capitals or not. A hidden file,
    whose name starts with a dot, is none.

    Args:
      directory: Folder to look into.
      left_out: Counts the other files, by the reason for which they are no images. Hidden files
        that do not look like images are not counted: every macOS folder has a `.DS_Store`.

    Raises:
      UserError: if the folder cannot be read.
    """
    found = []
    for entry in _entries(directory):
        if entry.is_dir():
            continue
        suffix = os.path.splitext(entry.name.lstrip("."))[1].lower()
        hidden, is_image = entry.name.startswith("."), suffix in IMAGE_SUFFIXES
        if is_image and not hidden and entry.is_file():
            found.append(entry.path)
        elif is_image:
            left_out["hidden" if hidden else "broken links"] += 1
        elif not hidden:
            left_out[suffix or "without a suffix"] += 1
    return sorted(found)


def images_below(directory: PathLike, left_out: LeftOut) -> list[str]:
    """`images_in` of a folder and all folders below it, but for hidden ones, sorted by path.

    Links to folders are followed; a folder that is met twice is read once.
    """
    return sorted(
        path for folder in _folders(directory, set()) for path in images_in(folder, left_out)
    )


def _folders(directory: PathLike, seen: set[tuple[int, int]]) -> Iterator[PathLike]:
    """The folder and all below it."""
    if not stores.is_address(directory):  # which has no links
        stat = os.stat(directory)
        if (stat.st_dev, stat.st_ino) in seen:
            return
        seen.add((stat.st_dev, stat.st_ino))
    yield directory
    for name in subfolders(directory):
        yield from _folders(os.path.join(directory, name), seen)


def _visible_folder(entry: os.DirEntry[str] | stores.Entry) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _entries(directory: PathLike) -> list[os.DirEntry[str]] | list[stores.Entry]:
    try:
        return stores.scan(directory)
    except OSError as error:
        raise UserError(f"cannot read the image folder {directory}: {error.strerror}") from error


def counted(left_out: LeftOut) -> str:
    """`3 .txt, 1 hidden`: the counts by reason, the largest first."""
    shown = [f"{count} {reason}" for reason, count in left_out.most_common(_KINDS_SHOWN)]
    if rest := left_out.total() - sum(n for _, n in left_out.most_common(_KINDS_SHOWN)):
        shown.append(f"{rest} of other kinds")
    return ", ".join(shown)


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning, unless this process has logged it before."""
    logging.warning("%s", message)

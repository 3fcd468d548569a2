"""The images that a command line names: files, folders, lists of paths, and standard input."""

import os
import sys
from collections.abc import Iterable

from vit_jax.errors import UserError
from vit_jax.input_pipeline import image_files
from vit_jax.input_pipeline.records import IMAGE_SUFFIXES

STDIN = "-"
LIST_SUFFIXES = (".txt", ".lst", ".list")


def image_paths(inputs: Iterable[str]) -> list[str]:
    """The paths of all images that `inputs` name, in their order.

    Args:
      inputs: Each is an image file; a folder, of which every image in it and in its subfolders
        counts, in the order of the names; a text file of paths, one a line, called `.txt`, `.lst`
        or `.list`; or `-` for such lines on standard input. Paths in a list are relative to the
        working directory, and are not looked at here.

    Raises:
      UserError: for a file or folder that does not exist, a list that is no text, or a folder or
        list that names no image.
    """
    return [path for given in inputs for path in _paths(given)]


def _paths(given: str) -> list[str]:
    if given == STDIN:
        return _lines(sys.stdin.buffer.read(), "standard input")
    if os.path.isdir(given):
        left_out = image_files.LeftOut()
        found = image_files.images_below(given, left_out)
        if not found:
            raise UserError(
                f"no images in the folder {given!r} or its subfolders: expected files with the "
                f"suffixes {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        if left_out:
            image_files.warn_once(f"{given}: left out: {image_files.counted(left_out)}")
        return found
    if not os.path.isfile(given):
        raise UserError(f"no image file {given!r}")
    if given.lower().endswith(LIST_SUFFIXES):
        with open(given, "rb") as file:
            return _lines(file.read(), given)
    return [given]


def _lines(content: bytes, name: str) -> list[str]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is no list of paths in UTF-8: {error}") from error
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise UserError(f"{name} names no image: expected one path a line")
    return found

"""The images that a command line names: files, folders, lists, standard input, and datasets."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from vit_jax import stores
from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import image_files
from vit_jax.input_pipeline.records import IMAGE_SUFFIXES, PathLike, Record, Source, read_image

STDIN = "-"
LIST_SUFFIXES = (".txt", ".lst", ".list")


class ImageFiles:
    """Image files without labels, as a source of records.

    Args:
      paths: Of the files, which are not looked at before they are read.
      description: What is read, for people.
    """

    num_classes = 0

    def __init__(self, paths: Sequence[str], description: str):
        self.names, self.description = paths, description

    def int2str(self, label: int) -> str:
        """Raises IndexError: there are no classes."""
        raise IndexError(f"{self.description} has no classes; got class {label}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        path = self.names[index]
        return {"image": read_image(path), "label": [], "name": path}


class Texts:
    """Texts as a source of records, in which each stands where the image of others does.

    Args:
      names: The texts.
      description: What is read, for people.
    """

    num_classes = 0
    int2str = ImageFiles.int2str

    def __init__(self, names: Sequence[str], description: str):
        self.names, self.description = names, description

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.names[index], "label": [], "name": self.names[index]}


def open_texts(inputs: Sequence[str]) -> Texts:
    """The texts that a command line names, each line of a file.

    Args:
      inputs: Text files in UTF-8, or `-` for the lines of standard input. Empty lines are none.

    Raises:
      UserError: if a file is missing, is no text, or has no line.
    """
    found: list[str] = []
    for given in inputs:
        if given == STDIN:
            found += _lines(sys.stdin.buffer.read(), "standard input", "text")
        elif not stores.is_file(given):
            raise UserError(f"no file of texts {given!r}: expected one text a line")
        else:
            found += _lines(stores.read_bytes(given), given, "text")
    return Texts(found, some(inputs, 2))


def open_images(
    inputs: Sequence[str],
    split: str | None = None,
    *,
    data_dir: PathLike | None = None,
    labels: bool = False,
) -> Source:
    """All images that a command line names, to be read at random.

    Args:
      inputs: What `image_paths` takes; or tar files of samples, see `tar_source.py`, with patterns
        as `vit-jax prepare` takes them; or one dataset as `sources.open_source` takes it.
      split: Of the dataset. With one, `inputs` names a dataset whatever it looks like.
      data_dir: As in `sources.open_source`.
      labels: Whether a folder whose images all lie in subfolders is one of classes, which are the
        subfolders. Otherwise its images have no labels, and are in the order of their paths.

    Raises:
      UserError: if nothing is named, or what is named cannot be opened or holds no image.
    """
    from vit_jax.input_pipeline import sources, tar_source

    if not inputs:
        raise UserError("name the images: files, folders, lists of paths, `-`, or a dataset")
    if split is None and any(map(tar_source.is_tar, inputs)):
        return tar_source.TarSource(tar_source.tar_files(inputs))
    if len(inputs) == 1 and (split is not None or _is_dataset(inputs[0], labels)):
        return sources.open_source(inputs[0], split, data_dir=data_dir, labelled=False)
    if split is not None:
        raise UserError(f"a split is of one dataset; {len(inputs)} inputs were named")
    if tables := [name for name in inputs if name.lower().endswith(sources.FILE_SUFFIXES)]:
        raise UserError(f"a dataset such as {tables[0]} is named alone; got {some(inputs)}")
    described = inputs[0] if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1} more"
    return ImageFiles(image_paths(inputs), "standard input" if described == STDIN else described)


def _is_dataset(given: str, labels: bool) -> bool:
    """Whether this names a dataset that `sources.open_source` opens, and no files of images."""
    from vit_jax.input_pipeline import imagenet_tar, sources
    from vit_jax.input_pipeline.array_record_source import is_array_record
    from vit_jax.input_pipeline.tfds_source import is_prepared_folder

    lower = given.lower()
    if lower.endswith(sources.FILE_SUFFIXES) or is_array_record(given):
        return True
    if stores.is_dir(given):
        if is_prepared_folder(given) or imagenet_tar.is_imagenet(given):
            return True
        return labels and sources.holds_only_classes(given)
    a_file = given == STDIN or stores.is_address(given) or os.path.exists(given)
    # What is left is the name of a dataset of TFDS, which is no path, or a file that is missing.
    return not a_file and not lower.endswith((*IMAGE_SUFFIXES, *LIST_SUFFIXES))


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
    if stores.is_dir(given):
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
    if not stores.is_file(given):
        raise UserError(f"no image file {given!r}")
    if given.lower().endswith(LIST_SUFFIXES):
        return _lines(stores.read_bytes(given), given)
    return [given]


def _lines(content: bytes, name: str, what: str = "path") -> list[str]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is no list of {what}s in UTF-8: {error}") from error
    if not (found := [line.strip() for line in lines if line.strip()]):
        names = "names no image" if what == "path" else f"has no {what}"
        raise UserError(f"{name} {names}: expected one {what} a line")
    return found

"""Examples from a folder that holds one subfolder of images for each class."""

import os
import re
from collections.abc import Collection

from vit_jax import stores
from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import classes, image_files
from vit_jax.input_pipeline.records import IMAGE_SUFFIXES, PathLike, Record, read_image

_SPLIT = re.compile(
    r"(train|test|val|valid|eval|dev)(ing|idation|uation)?([ _-]?(set|data|images?|split))?\d*",
    re.I,
)


class FolderSource:
    """The images of `<directory>/<class>/`, at any depth below it.

    Whatever Pillow decodes is an image (`records.IMAGE_SUFFIXES`); hidden files and folders are
    none. The images of a class are in the order of their paths. A warning counts what was left out.

    The classes are the names of the subfolders of `directory`, or of `train` beside `directory` if
    there is one, so that the classes of `test` have the same numbers. `classes.ordered` says in
    which order they are: numbers as numbers, other names as text.

    Args:
      directory: Folder of the classes.
      train: Folder that names the classes; None takes `train` beside `directory`, if it exists.

    Raises:
      UserError: if the directory is missing, has no class or a class without an image, or has a
        class that `train` lacks.
    """

    def __init__(self, directory: PathLike, train: PathLike | None = None):
        self.description = os.fspath(directory)
        files = _images_by_class(self.description)
        if train is None:
            train = os.path.join(os.path.dirname(stores.absolute(directory)), "train")
        known = image_files.subfolders(train) if stores.is_dir(train) else list(files)
        self._class_names = classes.ordered(known)
        classes.require_known(files, self._class_names, str(directory), train)
        self.num_classes = len(self._class_names)
        places = classes.places(list(files), self._class_names)
        by_label = sorted(zip(places, files.values(), strict=True), key=lambda pair: pair[0] or 0)
        self.names = [path for _, paths in by_label for path in paths]
        self.labels: list[int] = [label or 0 for label, paths in by_label for _ in paths]

    def int2str(self, label: int) -> str:
        """The name of the folder of class number `label`."""
        return self._class_names[label]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        path = self.names[index]
        return {"image": read_image(path), "label": self.labels[index], "name": path}


def _images_by_class(directory: str) -> dict[str, list[str]]:
    """The paths of every class, which has at least one; a warning counts what else there is."""
    try:
        names = image_files.subfolders(directory)
    except UserError as error:
        raise UserError(f"{error}; expected {{train,test}}/<class>/<image>") from error
    if unreadable := [ascii(name) for name in names if not _is_text(name)]:
        raise UserError(
            f"{directory} has class folders whose names are no UTF-8, which must be renamed: "
            f"{some(unreadable)}"
        )
    total, files, empty = image_files.LeftOut(), {}, []
    outside = len(image_files.images_in(directory, total))
    for name in names:
        left_out = image_files.LeftOut()
        files[name] = image_files.images_below(os.path.join(directory, name), left_out)
        if not files[name]:
            empty.append(f"{name} ({image_files.counted(left_out) or 'empty'})")
        total += left_out
    if outside:
        total["images outside of the class folders"] = outside
    if len(empty) == len(names):
        found = f" What is there: {image_files.counted(total)}." if total else ""
        raise UserError(
            f"no images in {directory}: expected {directory}/<class>/<image> with one of the "
            f"suffixes {' '.join(sorted(IMAGE_SUFFIXES))}.{found}"
        )
    if empty:
        raise UserError(
            f"{len(empty)} of the {len(names)} class folders of {directory} hold no image: "
            f"{some(empty)}. Remove them, or convert what is in them to a format that Pillow reads"
        )
    _require_classes(directory, files)
    if total:
        image_files.warn_once(
            f"{directory}: {sum(map(len, files.values()))} images are read, {total.total()} files "
            f"are left out: {image_files.counted(total)}"
        )
    return files


def _is_text(name: str) -> bool:
    """Whether a file's name is text, which can be written to a run's record."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_split(name: str) -> bool:
    """Whether a folder's name is that of a split, such as `Training` or `test_images`."""
    return _SPLIT.fullmatch(name) is not None


def are_splits(names: Collection[str]) -> bool:
    """Whether folders are splits by their names. A single `train` may be the class of vehicles."""
    count = sum(map(is_split, names))
    return count > 1 or count == len(names) > 0


def _require_classes(directory: str, files: dict[str, list[str]]) -> None:
    """Raises UserError for a folder of splits or of datasets, whose subfolders are no classes.

    What is in a folder that is called `train` or `test` are classes, whatever their names.
    """
    wrong = (
        list(files)
        if are_splits(files) and not is_split(os.path.basename(stores.absolute(directory)))
        else []
    )
    for name, paths in files.items():
        top = os.path.join(directory, name)
        folders = {os.path.dirname(path) for path in paths} - {top}
        inside = {os.path.relpath(folder, top).split(os.sep)[0] for folder in folders}
        if are_splits(inside):
            wrong.append(name)
    if wrong:
        raise UserError(
            f"{directory} holds splits or datasets, not classes: {some(wrong)}. Name one of them, "
            "or call the splits of a dataset train and test"
        )

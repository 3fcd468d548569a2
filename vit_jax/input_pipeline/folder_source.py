"""Examples from a folder that holds one subfolder of images for each class."""

import os
from pathlib import Path

from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import classes, image_files
from vit_jax.input_pipeline.records import IMAGE_SUFFIXES, PathLike, Record, read_image

_SPLITS = {"train", "test", "val", "validation"}


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
        files = _images_by_class(Path(directory))
        train = Path(directory).absolute().parent / "train" if train is None else train
        known = image_files.subfolders(train) if os.path.isdir(train) else list(files)
        self._class_names = classes.ordered(known)
        classes.require_known(files, self._class_names, str(directory), train)
        self.num_classes = len(self._class_names)
        places = classes.places(list(files), self._class_names)
        by_label = sorted(zip(places, files.values(), strict=True), key=lambda pair: pair[0] or 0)
        self._paths = [path for _, paths in by_label for path in paths]
        self.labels: list[int] = [label or 0 for label, paths in by_label for _ in paths]

    def int2str(self, label: int) -> str:
        """The name of the folder of class number `label`."""
        return self._class_names[label]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        path = self._paths[index]
        return {"image": read_image(path), "label": self.labels[index], "name": path}


def _images_by_class(directory: Path) -> dict[str, list[str]]:
    """The paths of every class, which has at least one; a warning counts what else there is."""
    try:
        names = image_files.subfolders(directory)
    except UserError as error:
        raise UserError(f"{error}; expected {{train,test}}/<class>/<image>") from error
    total, files, empty = image_files.LeftOut(), {}, []
    outside = len(image_files.images_in(directory, total))
    for name in names:
        left_out = image_files.LeftOut()
        files[name] = image_files.images_below(directory / name, left_out)
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
    _require_classes(directory, names)
    if total:
        image_files.warn_once(
            f"{directory}: {sum(map(len, files.values()))} images are read, {total.total()} files "
            f"are left out: {image_files.counted(total)}"
        )
    return files


def _require_classes(directory: Path, names: list[str]) -> None:
    """Raises UserError for a folder of datasets, whose subfolders are not classes."""
    nested = [n for n in names if any((directory / n / split).is_dir() for split in _SPLITS)]
    if nested or set(names) <= _SPLITS:
        raise UserError(
            f"{directory} holds datasets or splits, not classes: {some(nested or names)}. Name one "
            f"of them, such as {directory / (nested or names)[0]}"
        )

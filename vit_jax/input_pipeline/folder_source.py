"""Examples from a folder that holds one subfolder of images for each class."""

import functools
import os
from pathlib import Path

from vit_jax.errors import UserError
from vit_jax.input_pipeline.records import IMAGE_SUFFIXES, PathLike, Record, read_image


class FolderSource:
    """The JPEG, PNG and WebP images `<directory>/<class>/<file>`.

    The case of a file's suffix does not matter, and the files of a class are in name order. If
    `directory` has a sibling folder `train`, the classes are the sorted names of the subfolders of
    `train`, so that the classes of `test` have the same numbers; otherwise they are the sorted
    names of the subfolders of `directory`.

    Raises:
      UserError: if the directory is missing or holds no image, or has a class that `train` lacks.
    """

    def __init__(self, directory: PathLike):
        self._directory = Path(directory)
        files = _images_by_class(self._directory)
        self._class_names = _class_names(self._directory, files)
        self.num_classes = len(self._class_names)
        self._paths = [path for name in self._class_names for path in files.get(name, ())]
        self._labels = [
            label for label, name in enumerate(self._class_names) for _ in files.get(name, ())
        ]

    def int2str(self, label: int) -> str:
        """The name of the folder of class number `label`."""
        return self._class_names[label]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        path = self._paths[index]
        return {"image": read_image(path), "label": self._labels[index], "name": path}


@functools.lru_cache(maxsize=8)
def _listing(directory: str, modified: int) -> dict[str, list[str]]:
    # The time of modification is only a part of the cache's key: a folder that gained a class is
    # listed again.
    del modified
    return {
        entry.name: sorted(
            file.path
            for file in os.scandir(entry.path)
            if os.path.splitext(file.name)[1].lower() in IMAGE_SUFFIXES
        )
        for entry in os.scandir(directory)
        if entry.is_dir() and not entry.name.startswith(".")
    }


def _images_by_class(directory: Path) -> dict[str, list[str]]:
    try:
        files = _listing(str(directory), directory.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"cannot read the image folder {directory}: {error.strerror}; expected "
            "{train,test}/<class>/<image>"
        ) from error
    if not any(files.values()):
        raise UserError(
            f"no images in {directory}: expected {directory}/<class>/<image> with the suffixes "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return files


def _class_names(directory: Path, files: dict[str, list[str]]) -> list[str]:
    """Sorted class names, of the sibling folder `train` if it exists, else of the folder itself."""
    train = directory.absolute().parent / "train"
    known = _images_by_class(train) if train.is_dir() else files
    names = sorted(name for name, paths in known.items() if paths)
    if strangers := sorted(name for name, paths in files.items() if paths and name not in names):
        raise UserError(
            f"{directory} has classes that {train} lacks: {strangers}; "
            f"classes to train on: {names[:10]}{'…' if len(names) > 10 else ''}"
        )
    return names

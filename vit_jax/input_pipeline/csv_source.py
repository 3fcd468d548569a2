"""Examples listed in a CSV file of `path,label` or `path,label1;label2`."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from vit_jax.errors import UserError
from vit_jax.input_pipeline.records import PathLike, Record, read_image

_HEADERS = (["path", "label"], ["path", "labels"])
TRAIN = "train.csv"


class CsvSource:
    """The images of one CSV file.

    Every row is `path,label`, with a path relative to the CSV file's folder. A first row of
    `path,label` or `path,labels` is a header. The cell of an image with several labels holds them
    with semicolons between them. As soon as one row of the file that names the classes has no label
    or several labels, the label of every record is a list (an empty list for an empty cell), and
    the label vector of an example has a one for each label.

    The classes are the distinct labels in sorted order; labels that are all decimal numbers are
    sorted as numbers. `train` names the classes if it is given, so that the classes of a test file
    have the same numbers as those of the training file.

    Args:
      file: CSV file to read, in UTF-8.
      train: CSV file that the model is trained on; None takes the classes of `file`.

    Raises:
      UserError: if a file is missing, empty or malformed, if `file` has a class that `train` lacks,
        or if a row of `file` has no label or several labels and every row of `train` has one.
    """

    def __init__(self, file: PathLike, train: PathLike | None = None):
        self._paths, labels = _read(Path(file))
        known = labels if train is None or _same_file(file, train) else _read(Path(train))[1]
        self._class_names = _sorted({label for row in known for label in row})
        self.num_classes = len(self._class_names)
        self.multi_label = any(len(row) != 1 for row in known)
        numbers = {name: number for number, name in enumerate(self._class_names)}
        if strangers := _sorted({label for row in labels for label in row} - numbers.keys()):
            raise UserError(
                f"{file} has classes that {train} lacks: {strangers[:10]}; "
                f"classes to train on: {self._class_names[:10]}"
            )
        self._labels = [[numbers[label] for label in row] for row in labels]
        if not self.multi_label:
            for path, row in zip(self._paths, self._labels, strict=True):
                if len(row) != 1:
                    raise UserError(
                        f"{file} gives {path} {len(row)} labels; {train or file} has one an image"
                    )

    def int2str(self, label: int) -> str:
        """The text that stands for class number `label` in the CSV file."""
        return self._class_names[label]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        path, labels = self._paths[index], self._labels[index]
        return {
            "image": read_image(path),
            "label": list(labels) if self.multi_label else labels[0],
            "name": path,
        }


def _read(file: Path) -> tuple[list[str], list[list[str]]]:
    """The paths of a CSV file, and the list of labels of each path."""
    paths, labels = [], []
    try:
        # Spreadsheet programs write a byte order mark, which 'utf-8' would read as a part of the
        # first path; 'utf-8-sig' drops it.
        with open(file, newline="", encoding="utf-8-sig") as lines:
            rows = csv.reader(lines, strict=True)
            for row in rows:
                if not row or (rows.line_num == 1 and row in _HEADERS):
                    continue
                if len(row) != 2 or not row[0].strip():
                    raise UserError(
                        f"{file}, line {rows.line_num}: expected path,label or "
                        f"path,label1;label2, got {','.join(row)!r}"
                    )
                paths.append(os.path.join(file.parent, row[0].strip()))
                labels.append([part.strip() for part in row[1].split(";") if part.strip()])
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no CSV file in UTF-8: {error}") from error
    if not any(labels):
        raise UserError(f"no labelled images in {file}: expected rows of path,label")
    if all(len(row) <= 1 for row in labels) and not all(labels):
        raise UserError(f"{file} gives {paths[labels.index([])]} no label")
    if not os.path.exists(paths[0]):
        raise UserError(
            f"{file} names {paths[0]}, which does not exist; paths are relative to the file's "
            "folder"
        )
    return paths, labels


def _sorted(names: Iterable[str]) -> list[str]:
    names = list(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _same_file(left: PathLike, right: PathLike) -> bool:
    return os.path.abspath(left) == os.path.abspath(right)

"""Examples listed in a table of paths and labels: CSV, TSV, JSON lines or Parquet."""

import os
from collections.abc import Sequence

from vit_jax import stores
from vit_jax.errors import UserError, some
from vit_jax.input_pipeline import classes, tables
from vit_jax.input_pipeline.records import PathLike, Record, read_image


class TableSource:
    """The images of one table.

    Every row names an image by its path, relative to the table's folder, and its label.
    `tables.py` says how the columns are recognised. A cell may hold several labels with semicolons
    between them (or a list, in JSON and Parquet). As soon as one row of the table that names the
    classes has no label or several labels, the label of every record is a list, and the label
    vector of an example has a one for each label.

    The classes are the distinct labels, in the order of `classes.ordered`. A table without a column
    of labels has no classes, and the label of each record is an empty list.

    Args:
      file: Table to read.
      train: Table that the model is trained on, which names the classes, so that those of a test
        table have the same numbers; None takes the classes of `file`.

    Raises:
      UserError: if a file is missing, empty or malformed, if images that it names do not exist, if
        `file` has a class that `train` lacks, or if a row of `file` has no label or several labels
        and every row of `train` has one.
    """

    def __init__(self, file: PathLike, train: PathLike | None = None):
        self.description = os.fspath(file)
        self.names, labels = _read(self.description)
        other = train is not None and stores.absolute(train) != stores.absolute(file)
        known = _read(os.fspath(train))[1] if other and train is not None else labels
        self._class_names = classes.ordered(label for row in known for label in row)
        self.num_classes = len(self._class_names)
        if other:
            found = (label for row in labels for label in row)
            classes.require_known(found, self._class_names, str(file), train)
        self.multi_label = any(len(row) != 1 for row in known)
        numbers = _Numbers(self._class_names)
        rows = [[numbers[label] for label in row] for row in labels]
        if not self.multi_label:
            for path, row in zip(self.names, rows, strict=True):
                if len(row) != 1:
                    raise UserError(
                        f"{file} gives {path} {len(row)} labels; {train or file} has one an image"
                    )
        self.labels = rows if self.multi_label else [row[0] for row in rows]

    def int2str(self, label: int) -> str:
        """The text that stands for class number `label` in the table."""
        return self._class_names[label]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        path, label = self.names[index], self.labels[index]
        label = list(label) if isinstance(label, list) else label
        return {"image": read_image(path), "label": label, "name": path}


class _Numbers(dict[str, int]):
    """Name of a class -> its number; a name that is spelt another way is looked for once."""

    def __init__(self, names: Sequence[str]):
        super().__init__({name: number for number, name in enumerate(names)})
        self._names = names

    def __missing__(self, name: str) -> int:
        (place,) = classes.places([name], self._names)
        assert place is not None, name  # `require_known` has seen all names.
        self[name] = place
        return place


def _read(file: str) -> tuple[list[str], list[list[str]]]:
    """The paths of a table, and the list of labels of each path; all lists are empty without."""
    rows, labelled = tables.read_rows(file)
    if not rows:
        raise UserError(f"no labelled images in {file}: it names no image")
    paths = paths_of(file, rows)
    labels = [tables.labels_in(row.label) for row in rows]
    if labelled and not any(labels):
        raise UserError(f"no labelled images in {file}: all cells of labels are empty")
    if labelled and all(len(row) <= 1 for row in labels) and not all(labels):
        raise UserError(f"{file} gives {paths[labels.index([])]} no label")
    return paths, labels


def paths_of(
    file: str, rows: Sequence[tables.Row], content: tables.Content = tables.LABELS
) -> list[str]:
    """The path of each row's image. Every folder is listed once, which is fast.

    Raises:
      UserError: if a path is no file.
    """
    below = os.path.dirname(file)
    paths = [os.path.join(below, row.path) for row in rows]
    listed: dict[str, set[str]] = {}
    missing = []
    for row, path in zip(rows, paths, strict=True):
        folder, name = os.path.split(path)
        if folder not in listed:
            is_there = stores.is_dir(folder or ".")
            listed[folder] = {e.name for e in stores.scan(folder or ".")} if is_there else set()
        # Some file systems know a file by other spellings than the listed one.
        if name not in listed[folder] and not stores.exists(path):
            missing.append((row, path))
    if not missing:
        return paths
    row, path = missing[0]
    hint = "paths are relative to the table's folder"
    if "\\" in row.path:
        hint += ", with / between folders, not \\"
    if row.place == "line 1":
        hint += f". If the line names the columns: {tables.expected(content)}"
    raise UserError(
        f"{file} names {len(missing)} of {len(rows)} images that do not exist: "
        f"{some([path for _, path in missing], 3)}; the first in {row.place}. {hint}"
    )

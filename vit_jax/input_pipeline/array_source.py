"""Images that a file holds as numbers: tables of pixels, and the arrays of NumPy's `.npz`."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.errors import UserError, short, some
from vit_jax.input_pipeline import classes, tables
from vit_jax.input_pipeline.records import TEST_SPLITS, PathLike, Record

# What arrays and columns are called, in small letters without spaces, hyphens and underscores.
_IMAGES = ("images", "image", "x", "data", "pixels", "arr0")
_LABELS = ("labels", "label", "y", "targets", "target", "arr1")
_CLASS_NAMES = ("classnames", "labelnames", "classes", "names")
_NUMBERING = ("id", "index", "", "unnamed:0")  # Columns that only count the rows.
_LEAST_WHITE = 17  # Values up to 16 are another scale: scikit-learn's digits have it.


class ArraySource:
    """Images in memory, with one label each or none.

    The classes are the distinct labels, in the order of `classes.ordered`. Without labels there are
    no classes, and the label of each record is an empty list.

    Args:
      images: uint8 [N, height, width, channels].
      labels: N names of classes; None if the images have no labels.
      known: Names of the classes to train on, in their order; None takes those of `labels`.
      description: What is read, for people.

    Raises:
      UserError: if there is no image, or a label that `known` lacks.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[str] | None,
        known: Sequence[str] | None,
        description: str,
    ):
        if not len(images):
            raise UserError(f"no images in {description}")
        self._images, self.description = images, description
        self.class_names = classes.ordered(labels or ()) if known is None else list(known)
        self.num_classes = len(self.class_names)
        classes.require_known(labels or (), self.class_names, description, "the training part")
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.labels: Any = [[]] * len(images) if labels is None else [numbers[n] for n in labels]

    def int2str(self, label: int) -> str:
        """The text that stands for class number `label` in the file."""
        return self.class_names[label]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        name = f"{self.description}, image {index + 1}"
        return {"image": self._images[index], "label": self.labels[index], "name": name}


# --- tables of pixels ----------------------------------------------------------------------------


def is_pixel_table(file: PathLike) -> bool:
    """Whether a table holds pixels and no paths.

    Raises:
      UserError: if the file cannot be read.
    """
    if os.path.splitext(file)[1].lower() not in tables.TEXT_SUFFIXES:
        return False
    return tables.layout(file).columns.path is None


def open_pixel_table(file: PathLike, known: Sequence[str] | None = None) -> ArraySource:
    """A text table that has one grey image a row: its pixels row by row, and its label, if any.

    The label is in the column that the first line calls so. Without a line of names it is the first
    or the last cell: the one that is not the same in all rows, if the other is.

    Args:
      file: CSV or TSV file, as Kaggle gives out digits: 784 whole numbers of 0 to 255, of which 0
        is black, for 28 × 28 pixels.
      known: As for `ArraySource`.

    Raises:
      UserError: if the file cannot be read, if its values are not such numbers, if the pixels make
        no square, or if it is not clear which column is the label.
    """
    names, columns = _read_columns(file)
    label = tables.layout(file).columns.label
    pixels = [i for i in range(len(columns)) if i != label]
    if names is not None:
        pixels = [i for i in pixels if tables.squash(names[i]) not in _NUMBERING]
        pixels = _in_order(pixels, names)
    elif _side(len(columns) - 1):
        label = _varying(file, columns)
        pixels.remove(label)
    if not _side(len(pixels)):
        raise UserError(
            f"{file}: {len(pixels)} columns of pixels make no square image. Images of other shapes "
            "and of colours can be read from the arrays of an .npz file, images [N, height, width, "
            "channels] and labels [N]; in a table of paths their column must be called path"
        )
    wrong = [i for i in pixels if columns[i].dtype.kind not in "iu"]
    if wrong:
        where = f"column {names[wrong[0]] if names else wrong[0] + 1}"
        values = short(", ".join(map(str, columns[wrong[0]][:3])))
        raise UserError(f"{file}: pixels are whole numbers of 0 to 255; {where} has {values}")
    images = _as_images(np.stack([columns[i] for i in pixels], axis=-1), str(file))
    labels = None if label is None else _one_each(columns[label].tolist(), str(file))
    return ArraySource(images, labels, known, os.fspath(file))


def _read_columns(file: PathLike) -> tuple[tuple[str, ...] | None, list[np.ndarray]]:
    """The names of a table's columns, if it has any, and the columns."""
    import pyarrow
    import pyarrow.csv

    form = tables.layout(file)
    names = form.columns.names
    try:
        table = pyarrow.csv.read_csv(
            file,
            pyarrow.csv.ReadOptions(autogenerate_column_names=names is None),
            pyarrow.csv.ParseOptions(delimiter=form.delimiter),
        )
    except pyarrow.ArrowException as error:
        raise UserError(f"{file} is no table of pixels: {short(str(error), 200)}") from error
    if gaps := [i for i, column in enumerate(table.columns) if column.null_count]:
        raise UserError(f"{file}: column {gaps[0] + 1} has empty cells")
    return names, [column.to_numpy() for column in table.columns]


def _in_order(pixels: list[int], names: Sequence[str]) -> list[int]:
    """Columns whose names end in numbers (pixel0, pixel1, …) in the order of the numbers."""
    ends = [re.search(r"(?<![\dx])\d+$", names[i]) for i in pixels]
    numbers = [int(end[0]) for end in ends if end is not None]
    if len(set(numbers)) != len(pixels):
        return pixels
    return [i for _, i in sorted(zip(numbers, pixels, strict=True))]


def _varying(file: PathLike, columns: Sequence[np.ndarray]) -> int:
    """The number of the column of labels: the first or the last."""
    first, last = (len(np.unique(columns[i])) > 1 for i in (0, -1))
    if first == last:
        raise UserError(
            f"{file}: one of its {len(columns)} columns must be the label, the first or the last; "
            "its values do not tell which. Put a line of names first, which calls one 'label'"
        )
    return 0 if first else len(columns) - 1


# --- NumPy ---------------------------------------------------------------------------------------


def npz_parts(file: PathLike) -> list[str]:
    """The splits for which an `.npz` has arrays of images; empty if it does not name splits.

    Raises:
      UserError: if the file cannot be read.
    """
    names = {tables.squash(name) for name in _arrays(file)}
    return [
        split
        for split in ("train", *TEST_SPLITS)
        if any(_key(split, kind) & names for kind in _IMAGES)
    ]


def open_npz(
    file: PathLike, split: str | None = None, known: Sequence[str] | None = None
) -> ArraySource:
    """The images of an `.npz`, and their labels if it has any.

    Args:
      file: Its arrays are called `images` (or `x`, `data`, …) and `labels` (or `y`, …), have the
        name of a split too (`x_train`, `train_images`, …), or have no names: `arr_0` is the images
        and `arr_1` the labels. Images are whole numbers of 0 to
        255, [N, height, width] or [N, height, width, 1 or 3]; labels are numbers or names, [N] or
        [N, 1]. An array `class_names` names the classes of labels that are numbers from 0.
      split: One of `npz_parts`; None for arrays without a split in their names.
      known: As for `ArraySource`.

    Raises:
      UserError: if the file cannot be read, lacks an array, or has arrays of other shapes or types.
    """
    arrays = _arrays(file)
    images, labels = (_find(file, arrays, split, kinds) for kinds in (_IMAGES, _LABELS))
    if images is None:
        raise UserError(
            f"{file} has no array of images{f' for {split}' if split else ''}: expected 'images' "
            f"and 'labels', or 'x_train' and 'y_train', …; it has {some(list(arrays), 10)}"
        )
    what = f"{file} ({images})"
    pixels = _as_images(_load(file, arrays, images), what)
    names = None
    if labels is not None:
        array = _load(file, arrays, labels)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.shape != (len(pixels),):
            raise UserError(
                f"{file}: {labels} must have one label for each of the {len(pixels)} images, got "
                f"the shape {list(array.shape)}"
            )
        names = _one_each([_text(value) for value in array.tolist()], f"{file} ({labels})")
    table = next((n for n in arrays if tables.squash(n) in _CLASS_NAMES), None)
    if names is not None and table is not None:
        known = [_text(name) for name in _load(file, arrays, table).ravel().tolist()]
        names = _named(names, known, what)
    return ArraySource(pixels, names, known, what)


def _arrays(file: PathLike) -> Mapping[str, Any]:
    """The arrays of a file by name, each read when it is asked for."""
    import zipfile

    try:
        arrays = np.load(stores.readable(file), allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{file} is no .npz file of arrays: {short(str(error), 200)}") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise UserError(f"{file} is no .npz file of arrays: it holds a single one")
    return arrays


def _load(file: PathLike, arrays: Mapping[str, Any], name: str) -> np.ndarray:
    try:
        return arrays[name]
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen types.
        raise UserError(f"{file}: cannot read {name}: {short(str(error), 200)}") from error


def _key(split: str | None, kind: str) -> set[str]:
    return {f"{split}{kind}", f"{kind}{split}"} if split else {kind}


def _find(
    file: PathLike, arrays: Mapping[str, Any], split: str | None, kinds: Sequence[str]
) -> str | None:
    """The name of the only array of one of these kinds; None if there is none."""
    wanted = set[str]().union(*(_key(split, kind) for kind in kinds))
    found = [name for name in arrays if tables.squash(name) in wanted]
    if len(found) > 1:
        raise UserError(f"{file}: which of its arrays {some(found)} is meant? Leave one of them")
    return found[0] if found else None


def _named(labels: Sequence[str], names: Sequence[str], what: str) -> list[str]:
    """Labels that are numbers from 0, by the names of the classes; names stay."""
    if set(labels) <= set(names):
        return list(labels)
    if not all(n.isdecimal() and int(n) < len(names) for n in labels):
        raise UserError(f"{what} has labels that are not among its {len(names)} class names")
    return [names[int(label)] for label in labels]


# --- both ----------------------------------------------------------------------------------------


def _as_images(array: np.ndarray, what: str) -> np.ndarray:
    """uint8 [N, height, width, channels] of an array of pixels; UserError for other values."""
    if array.ndim == 2 and (side := _side(array.shape[1])):
        array = array.reshape(len(array), side, side)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        hint = ""
        if array.ndim == 4 and array.shape[1] in (1, 3):
            hint = "; the channels come last: images.transpose(0, 2, 3, 1)"
        raise UserError(
            f"{what}: expected images [N, height, width] or [N, height, width, 1 or 3], got "
            f"{list(array.shape)}{hint}"
        )
    if array.dtype.kind not in "iu":
        raise UserError(
            f"{what}: pixels are whole numbers of 0 to 255, got {array.dtype}; nothing says which "
            "value is white. Scale them to 0 to 255 and round them"
        )
    if array.size and (array.min() < 0 or not _LEAST_WHITE <= array.max() <= 255):
        raise UserError(
            f"{what}: pixels are whole numbers of 0 to 255, these are of {array.min()} to "
            f"{array.max()}. Scale them to 0 to 255"
        )
    return array.astype(np.uint8)


def _one_each(values: Sequence[Any], what: str) -> list[str]:
    labels = [tables.labels_in(value) for value in values]
    if wrong := [i for i, label in enumerate(labels) if len(label) != 1]:
        raise UserError(f"{what}: image {wrong[0] + 1} has {len(labels[wrong[0]])} labels, not one")
    return [label for (label,) in labels]


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _side(count: int) -> int:
    """The side of a square of `count` pixels, 0 if they make none."""
    side = math.isqrt(max(count, 0))
    return side if side * side == count else 0

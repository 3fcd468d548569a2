"""Tables of encoded images as Hugging Face's datasets write them: Parquet, and Arrow on disk.

A column of images holds {'bytes': the encoded image, 'path': its name}, or the bytes alone. The
schema's metadata may say which column is an image or a class label, and the names of the classes
(`huggingface`, https://huggingface.co/docs/datasets/about_dataset_features).
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.errors import UserError, short
from vit_jax.input_pipeline import tables
from vit_jax.input_pipeline.preparing.samples import (
    ANY_FIELDS,
    Fields,
    Sample,
    captions_of,
    chosen_field,
    labels_of,
    the_one,
)

PARQUET, ARROW = ".parquet", ".arrow"
_ERRORS = (OSError, ValueError, NotImplementedError)  # what pyarrow's errors are
_ROWS = 64  # that are in memory at a time


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of images and labels of one file.

    Attributes:
      image, label: Their names; that of captions where they are taken in place of labels.
      names: Names of the classes by their numbers; None if the labels are the names.
      several: Whether a cell of labels is a list.
    """

    image: str
    label: str
    names: tuple[str, ...] | None
    several: bool


@dataclasses.dataclass(frozen=True)
class TableFile:
    """One file, Parquet or a stream of Arrow.

    Attributes:
      path: The path of the file.
      fields: The columns to take.
      numbered: Names of the classes by their numbers; None takes those of the schema.
    """

    path: str
    fields: Fields = ANY_FIELDS
    numbered: tuple[str, ...] | None = None

    def class_names(self) -> list[str] | None:
        """See `SampleFile.class_names`."""
        names = self._columns.names
        return None if names is None else list(names)

    def several_labels(self) -> bool:
        """See `SampleFile.several_labels`."""
        return self._columns.several

    def read(self, start: int = 0, *, images: bool = True) -> Iterator[Sample]:
        """See `SampleFile.read`."""
        columns, row = self._columns, 0
        wanted = [columns.label, columns.image] if images else [columns.label]
        batches = _parquet_rows if self.path.endswith(PARQUET) else _arrow_rows
        try:
            for first, cells in batches(self.path, wanted, start):
                for row, values in enumerate(zip(*cells, strict=True), start=first):
                    if row >= start:
                        yield self._sample(row, *values)
        except _ERRORS as error:
            why = f"the file is damaged from here on: {short(str(error), 200)}"
            yield Sample(f"{self.path}: after row {row + 1}", problem=why)

    def _sample(self, row: int, label: Any, image: Any = None) -> Sample:
        columns, name = self._columns, f"{self.path}: row {row + 1}"
        if isinstance(image, Mapping) and image.get("path"):
            name += f" ({image['path']})"
        if self.fields.captions:
            labels, problem = captions_of(label)
        else:
            labels, problem = labels_of(label, columns.names, columns.several)
        content = image.get("bytes") if isinstance(image, Mapping) else image
        if content is None and isinstance(image, Mapping) and image.get("path"):
            place = os.path.join(os.path.dirname(self.path), image["path"])
            with contextlib.suppress(OSError), open(place, "rb") as file:
                content = file.read()
            problem = problem or ("" if content else f"it has no bytes, and {place} is no file")
        if content is not None and not isinstance(content, bytes):
            problem = problem or f"its image is no bytes but {type(content).__name__}"
        return Sample(name, labels, content, problem or None)

    @functools.cached_property
    def _columns(self) -> Columns:
        try:
            schema = _schema(self.path)
        except UserError:
            raise
        except _ERRORS as error:
            raise UserError(f"cannot read {self.path}: {short(str(error), 200)}") from error
        return _columns_of(self.path, schema, self.fields, self.numbered)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            'Parquet and Arrow need pyarrow, which is not installed: pip install "vit-jax[parquet]"'
        ) from error
    return pyarrow


def _schema(path: str) -> Any:
    if path.endswith(PARQUET):
        return _pyarrow().parquet.read_schema(path)
    with _arrow(path) as stream:
        return stream.schema


@contextlib.contextmanager
def _arrow(path: str) -> Iterator[Any]:
    pyarrow = _pyarrow()
    with pyarrow.memory_map(path) as source, pyarrow.ipc.open_stream(source) as stream:
        yield stream


def _columns_of(
    path: str, schema: Any, fields: Fields, numbered: tuple[str, ...] | None
) -> Columns:
    features = _features(schema)
    kinds = {name: _kind(features.get(name)) for name in schema.names}
    declared = {
        what: [name for name in schema.names if kinds[name] == kind]
        for what, kind in (("image", "Image"), ("label", "ClassLabel"))
    }
    like = {"image": tables.is_path, "label": tables.is_label}
    if fields.captions:
        declared["label"], like["label"] = [], tables.is_caption
    found = {}
    called = {"image": "image", "label": fields.content.name}
    for what, wanted in (("image", fields.image), ("label", fields.label)):
        if wanted is not None:
            found[what] = chosen_field(path, called[what], wanted, schema.names)
            continue
        candidates = declared[what] or [name for name in schema.names if like[what](name)]
        found[what] = the_one(path, called[what], candidates, schema.names)
    label = schema.field(found["label"]).type
    names = _class_names(features.get(found["label"]))
    return Columns(**found, names=numbered or names, several="list" in str(label))


def _features(schema: Any) -> dict[str, Any]:
    """What the metadata of Hugging Face says of the columns."""
    try:
        known = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(known.get("info", {}).get("features", {}))
    except (ValueError, AttributeError, TypeError):
        return {}


def _element(feature: Any) -> Any:
    """The feature of the elements of a list, or the feature itself."""
    if isinstance(feature, list) and feature:
        return _element(feature[0])
    if isinstance(feature, Mapping) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        return _element(feature.get("feature"))
    return feature


def _kind(feature: Any) -> str | None:
    element = _element(feature)
    return element.get("_type") if isinstance(element, Mapping) else None


def _class_names(feature: Any) -> tuple[str, ...] | None:
    if _kind(feature) != "ClassLabel":
        return None
    names = _element(feature).get("names")
    return tuple(map(str, names)) if names else None


# --- rows ----------------------------------------------------------------------------------------

Rows = Iterator[tuple[int, list[list[Any]]]]  # (number of the first row, the cells of each column)


def _parquet_rows(path: str, columns: list[str], start: int) -> Rows:
    with _pyarrow().parquet.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        first = 0
        for group, size in enumerate(sizes):
            if first + size <= start:
                first += size
                continue
            # `iter_batches` gives the columns in the file's order.
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=columns):
                yield first, [batch.column(name).to_pylist() for name in columns]
                first += batch.num_rows


def _arrow_rows(path: str, columns: list[str], start: int) -> Rows:
    with _arrow(path) as stream:
        first = 0
        for batch in stream:
            for offset in range(0, batch.num_rows, _ROWS):
                rows = min(_ROWS, batch.num_rows - offset)
                if first + rows > start:
                    part = batch.slice(offset, rows)
                    yield first, [part.column(name).to_pylist() for name in columns]
                first += rows


# --- folders -------------------------------------------------------------------------------------


_SEVERAL, _ONE = "dataset_dict.json", "state.json"


def is_on_disk(folder: str) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (_SEVERAL, _ONE))


def splits_on_disk(folder: str) -> dict[str, list[str]]:
    """The files of each split in a folder that `save_to_disk` wrote.

    A folder of one split that does not say which it is has the split ''.

    Raises:
      UserError: if a description in the folder cannot be read, or names an index of rows.
    """
    several = os.path.join(folder, _SEVERAL)
    if os.path.isfile(several):
        splits = _json(several).get("splits", [])
        return {split: _files(os.path.join(folder, split)) for split in splits}
    return {str(_json(os.path.join(folder, _ONE)).get("_split") or ""): _files(folder)}


def _files(folder: str) -> list[str]:
    state = _json(os.path.join(folder, _ONE))
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder} keeps the order of its rows in an index: call flatten_indices() on the "
            "dataset and save_to_disk() again"
        )
    try:
        return [os.path.join(folder, file["filename"]) for file in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}/{_ONE} names no files of data") from error


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no description of a dataset")
    return content

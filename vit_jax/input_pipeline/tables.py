"""Reads tables of images: CSV, TSV, JSON lines and Parquet, with or without a line of names.

This module knows columns and cells; what an image's source makes of them stands in
`table_source.py`.
"""

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vit_jax import stores
from vit_jax.errors import UserError, short, some
from vit_jax.input_pipeline.records import PathLike

# What the columns are called, in small letters without spaces, hyphens and underscores.
_PATH = re.compile(
    r"(path|file|filename|filepath|image|img|(image|img)(path|file|filename|name|id))s?"
)


@dataclasses.dataclass(frozen=True)
class Content:
    """What a table tells of its images.

    Attributes:
      name: What it is called, in the singular.
      pattern: What its column is called.
      expected: Names of its column, for messages.
      images: What images are called of which it is told.
      several: How several of them stand in a row of text.
    """

    name: str
    pattern: re.Pattern[str]
    expected: str
    images: str
    several: str


LABELS = Content(
    "label",
    re.compile(r"(label|class|category|target)(s|es|name|label)?|categories|y"),
    "label (or class, category, …)",
    "labelled images",
    "Several labels have semicolons between them: path,one;two",
)
CAPTIONS = Content(
    "caption",
    re.compile(r"(raw)?(caption|text|sentence|description|alttext|alt)s?"),
    "caption (or text, sentence, …)",
    "images with captions",
    "A caption with a comma in it stands in quotes, and another caption of an image in a row of "
    "its own",
)

TEXT_SUFFIXES = (".csv", ".tsv", ".tab")
# A tab hardly ever stands in a name, whereas names with commas and lists with semicolons are usual.
_DELIMITERS = ("\t", ",", ";", "|")
_LOOKED_AT = 20  # lines
# Said where a cell holds an image instead of its path.
_EMBEDDED = (
    ". A table that holds images is read at random after `vit-jax prepare TABLE --to FOLDER`"
)
_PIXELS = 16  # A table of at least so many columns, without paths, is a table of pixels.


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column is which, by their numbers from 0.

    Attributes:
      names: Names of all columns; None if the table does not begin with names.
      path: Column of paths; None in a table of pixels.
      label: Column of labels, or of captions if they were asked for; None if there is none.
    """

    names: tuple[str, ...] | None
    path: int | None
    label: int | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One image: its place in the table, for messages; its path; and its cell of labels.

    The cell is that of captions if they were asked for.
    """

    place: str
    path: str
    label: Any


def read_rows(file: PathLike, content: Content = LABELS) -> tuple[list[Row], bool]:
    """All rows of a table of paths, and whether it has a column of labels, or of other `content`.

    Raises:
      UserError: if the file cannot be read, is malformed, or does not say which column is which.
    """
    suffix = os.path.splitext(file)[1].lower()
    reader = _read_text if suffix in TEXT_SUFFIXES else _OTHERS[suffix]
    try:
        return reader(file, content)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


# --- names ---------------------------------------------------------------------------------------


def squash(name: str) -> str:
    """A name in small letters without spaces, hyphens and underscores: 'Image_Path' and others."""
    return re.sub(r"[\s_-]", "", name).lower()


def is_path(name: str) -> bool:
    """Whether a column of this name holds images or their paths."""
    return _PATH.fullmatch(squash(name)) is not None


def is_label(name: str) -> bool:
    """Whether a column of this name holds labels."""
    return LABELS.pattern.fullmatch(squash(name)) is not None


def is_caption(name: str) -> bool:
    """Whether a column of this name holds captions."""
    return CAPTIONS.pattern.fullmatch(squash(name)) is not None


def columns_of(file: PathLike, names: Sequence[str], content: Content = LABELS) -> Columns | None:
    """What a line of names says; None if it names neither a path nor a table of pixels.

    Raises:
      UserError: if several columns could be the path, or the content.
    """
    squashed = [squash(name) for name in names]
    path, label = (
        _only(file, what, [i for i, name in enumerate(squashed) if known.fullmatch(name)], names)
        for what, known in (("path", _PATH), (content.name, content.pattern))
    )
    if path is None and len(names) < _PIXELS:
        return None
    if path is None and all(re.fullmatch(r"[\d.]*", name) for name in squashed):
        return None  # A table of pixels that begins with pixels.
    return Columns(tuple(names), path, label)


def _only(file: PathLike, what: str, found: list[int], names: Sequence[str]) -> int | None:
    if len(found) > 1:
        raise UserError(
            f"{file}: several columns could be the {what}: {some([names[i] for i in found])}. "
            "Rename all but one of them"
        )
    return found[0] if found else None


def expected(content: Content = LABELS) -> str:
    """What a table should look like, for messages."""
    return (
        f"expected two columns of paths and {content.name}s, which a first line may name: path (or "
        f"file, filename, image, …) and {content.expected}"
    )


# --- text ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the lines of a text table are read: the character between cells, and the columns."""

    delimiter: str
    columns: Columns


def layout(file: PathLike, content: Content = LABELS) -> Layout:
    """The layout of a CSV or TSV file, by its first lines.

    The delimiter is a tab in a `.tsv` file. Elsewhere it is the first of tab, comma, semicolon and
    bar at which the first line gives known names of columns, or else all lines the same number of
    at least two cells.

    Raises:
      UserError: if the file cannot be read, is empty or is no UTF-8; and as `columns_of`.
    """
    head = []
    with _open(file) as lines:
        for line in lines:
            if line.strip():
                head.append(line)
            if len(head) == _LOOKED_AT:
                break
    if not head:
        raise UserError(f"no {content.images} in {file}: it is empty; {expected(content)}")
    tab = os.path.splitext(file)[1].lower() in (".tsv", ".tab")
    tried = {mark: _cells(head, mark) for mark in (("\t",) if tab else _DELIMITERS)}
    for mark, rows in tried.items():
        if len(rows[0]) > 1 and (named := columns_of(file, rows[0], content)) is not None:
            return Layout(mark, named)
    for mark, rows in tried.items():
        if len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            return Layout(mark, _unnamed(len(rows[0])))
    mark, rows = ("\t" if tab else ","), tried["\t" if tab else ","]
    named = columns_of(file, rows[0], content)
    return Layout(mark, named or _unnamed(len(rows[0])))


def _cells(lines: list[str], mark: str) -> list[list[str]]:
    """The cells of lines; a cell that is quoted over several lines is cut at the last of them."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=mark, skipinitialspace=True) if row]
    except csv.Error:  # Said when the whole file is read.
        rows = []
    return rows or [[""]]


def _unnamed(count: int) -> Columns:
    if count >= _PIXELS:
        return Columns(None, None, None)
    return Columns(None, 0, 1 if count == 2 else None)


def _read_text(file: PathLike, content: Content) -> tuple[list[Row], bool]:
    form = layout(file, content)
    columns, rows = form.columns, []
    width = len(columns.names) if columns.names else 2 if columns.label is not None else 1
    header = columns.names is not None
    with _open(file) as lines:
        reader = csv.reader(
            lines, delimiter=form.delimiter, skipinitialspace=form.delimiter != "\t", strict=True
        )
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if header:
                    header = False
                    continue
                place = f"line {reader.line_num}"
                if len(cells) != width or not cells[columns.path or 0].strip():
                    raise UserError(f"{file}, {place}: {_wrong_cells(cells, columns, content)}")
                label = "" if columns.label is None else cells[columns.label]
                rows.append(Row(place, cells[columns.path or 0].strip(), label))
        except csv.Error as error:
            raise UserError(f"{file}, line {reader.line_num}, is no CSV: {error}") from error
    return rows, columns.label is not None


def _wrong_cells(cells: list[str], columns: Columns, content: Content) -> str:
    got = f"got {len(cells)} cells: {short(','.join(cells))!r}"
    if columns.names is not None:
        return f"expected {len(columns.names)} cells, {some(columns.names)}, with a path; {got}"
    return f"{expected(content)}; {got}. {content.several}"


def _open(file: PathLike) -> io.TextIOBase:
    """The text of a file; UserError if it is not UTF-8, or a spreadsheet's UTF-8 with its mark.

    Whatever is no UTF-8 is refused: read as Latin-1, any bytes would give some names.
    """
    try:
        content = stores.read_bytes(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    try:
        return io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        guess = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise UserError(
            f"{file} is no text in UTF-8: line {line} has the byte 0x{content[error.start]:02x}. "
            f"Save it as UTF-8; if it is {guess}: iconv -f {guess} -t utf-8 {file} > utf8"
            f"{os.path.splitext(file)[1]}"
        ) from error


# --- JSON lines and Parquet ----------------------------------------------------------------------


def _read_json_lines(file: PathLike, content: Content) -> tuple[list[Row], bool]:
    rows, labelled = [], False
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}, line {number}, is no JSON: {error}") from error
            if not isinstance(cells, dict):
                raise UserError(f"{file}, line {number}: expected an object, got {short(line)!r}")
            row, has_label = _named_row(file, f"line {number}", cells, content)
            labelled |= has_label
            rows.append(row)
    return rows, labelled


def _read_parquet(file: PathLike, content: Content) -> tuple[list[Row], bool]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stores.readable(file)).read()
        columns = columns_of(file, table.column_names, content)
        if columns is None or columns.path is None:
            raise UserError(f"{file}: {_no_path(table.column_names, content)}")
        kept = [i for i in (columns.path, columns.label) if i is not None]
        cells = table.select(kept).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no Parquet file: {short(str(error), 200)}") from error
    rows = [_named_row(file, f"row {i}", row, content)[0] for i, row in enumerate(cells, start=1)]
    return rows, columns.label is not None


def _named_row(
    file: PathLike, place: str, cells: dict[str, Any], content: Content
) -> tuple[Row, bool]:
    names = list(cells)
    columns = columns_of(file, names, content)
    if columns is None or columns.path is None:
        raise UserError(f"{file}, {place}: {_no_path(names, content)}")
    path = cells[names[columns.path]]
    if not isinstance(path, str) or not path.strip():
        hint = _EMBEDDED if isinstance(path, dict | bytes) else ""
        raise UserError(
            f"{file}, {place}: the {names[columns.path]} is no path but "
            f"{type(path).__name__}: {short(repr(path))}{hint}"
        )
    label = None if columns.label is None else cells[names[columns.label]]
    return Row(place, path.strip(), label), columns.label is not None


def _no_path(names: Sequence[str], content: Content) -> str:
    return f"no column of paths among {some(names, 10)}; {expected(content)}"


_OTHERS: dict[str, Callable[[PathLike, Content], tuple[list[Row], bool]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
SUFFIXES = (*TEXT_SUFFIXES, *_OTHERS)


def labels_in(cell: Any) -> list[str]:
    """The labels in a cell: a text with semicolons between them, a number, or a list of labels.

    A whole number is the same label however it was stored: 3, 3.0 and '3'. None, NaN and an empty
    text are no label.
    """
    return list(_labels(cell))


def _labels(cell: Any) -> Iterator[str]:
    if isinstance(cell, list | tuple):
        for part in cell:
            yield from _labels(part)
    elif isinstance(cell, float):
        if cell == cell:  # NaN is not equal to itself.
            yield str(int(cell)) if cell.is_integer() else str(cell)
    elif cell is not None:
        yield from filter(None, map(str.strip, str(cell).split(";")))

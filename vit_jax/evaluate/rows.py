"""Writes predictions as rows of a text, CSV, JSON or Parquet file, one by one as they come."""

import contextlib
import csv
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from vit_jax import json_text, stores
from vit_jax.errors import UserError, suggest

Row = Mapping[str, Any]
Write = Callable[[Row], None]

_SUFFIXES = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
_PARQUET_ROWS = 4096  # rows that are held before they are written


def format_of(path: str) -> str:
    """The format that the suffix of a file's name stands for; UserError for another suffix."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _SUFFIXES:
        raise UserError(
            f"the suffix of {path!r} tells no format: expected {', '.join(_SUFFIXES)}, or --format"
        )
    return _SUFFIXES[suffix]


def check(form: str, path: str | None) -> None:
    """Raises UserError where `writing` would: to be called before work is done."""
    if form not in _FORMATS:
        raise UserError(f"unknown format {form!r}.{suggest(form, _FORMATS)}")
    if path is None:
        if form == "parquet":
            raise UserError("Parquet is no text: give a file, --output FILE.parquet")
        return
    if stores.is_address(path):
        stores.path(path)  # what reads and writes it must be installed
        return
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise UserError(f"cannot write {path!r}: it is a directory")
    if not os.path.isdir(folder):
        raise UserError(f"cannot write {path!r}: there is no directory {folder!r}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path!r}: no permission to write into {folder!r}")


@contextlib.contextmanager
def writing(form: str, columns: Mapping[str, type], path: str | None) -> Iterator[Write]:
    """A function that writes one row, a dict of the columns.

    Args:
      form: 'tsv' (without a header), 'csv' (with one), 'jsonl' (an object a line), 'json' (a list
        of them) or 'parquet'.
      columns: Name of each column, in order, and its type: int, float or str. A value may be None.
      path: The file, which appears whole or not at all; None writes to standard output.

    Raises:
      UserError: if the file cannot be written, or Parquet is asked for on standard output or where
        pyarrow is not installed.
    """
    check(form, path)
    with contextlib.ExitStack() as stack:
        stream: Any = sys.stdout
        if path is not None:
            from vit_jax.checkpoint.files.archive import replacing

            stream = stack.enter_context(replacing(path))
            if form != "parquet":
                stream = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
                stack.callback(stream.detach)
        yield stack.enter_context(_FORMATS[form](stream, columns))


@contextlib.contextmanager
def _separated(
    stream: IO[str], columns: Mapping[str, type], *, delimiter: str, header: bool
) -> Iterator[Write]:
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    if header:
        writer.writerow(columns)

    def write(row: Row) -> None:
        writer.writerow([_cell(row.get(name)) for name in columns])

    yield write


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


@contextlib.contextmanager
def _json_lines(stream: IO[str], columns: Mapping[str, type]) -> Iterator[Write]:
    del columns
    yield lambda row: print(json_text.dumps(row), file=stream)


@contextlib.contextmanager
def _json(stream: IO[str], columns: Mapping[str, type]) -> Iterator[Write]:
    """A list, of which each item is written when it comes."""
    del columns
    before = "[\n"

    def write(row: Row) -> None:
        nonlocal before
        text = json_text.dumps(row, indent=2)
        indented = "\n".join(f"  {line}" for line in text.splitlines())
        print(before, indented, sep="", end="", file=stream)
        before = ",\n"

    yield write
    print("[]" if before == "[\n" else "\n]", file=stream)


@contextlib.contextmanager
def _parquet(stream: IO[bytes], columns: Mapping[str, type]) -> Iterator[Write]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            'Parquet needs pyarrow, which is not installed: pip install "vit-jax[parquet]"'
        ) from error
    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    rows: list[Row] = []
    with pq.ParquetWriter(stream, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema))
            rows.clear()

        def write(row: Row) -> None:
            rows.append(row)
            if len(rows) >= _PARQUET_ROWS:
                flush()

        yield write
        flush()


_FORMATS: dict[str, Callable[[Any, Mapping[str, type]], Any]] = {
    "tsv": functools.partial(_separated, delimiter="\t", header=False),
    "csv": functools.partial(_separated, delimiter=",", header=True),
    "jsonl": _json_lines,
    "json": _json,
    "parquet": _parquet,
}
FORMATS: Sequence[str] = tuple(_FORMATS)

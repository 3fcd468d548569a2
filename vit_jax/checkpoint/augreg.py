"""The index of AugReg's 50,000 checkpoints ("How to train your ViT?", arXiv:2106.10270).

A row of `index.csv` is a fine-tuned checkpoint, `adapt_filename`, and the pre-trained one that it
comes from, `filename`; each pre-trained one has many rows. The columns, as the original's
`get_augreg_df` explains them: `name` (B/16, R26+S/32), `ds` (what it was pre-trained on: i1k, i21k,
or i21k_30 for 30 epochs), `lr`, `aug`, `wd`, `do`, `sd`, accuracies `best_val`, `final_val` and
`final_test`, the same of fine-tuning (`adapt_ds`, `adapt_lr`, `adapt_steps`, `adapt_resolution`,
`adapt_final_val`, `adapt_final_test`), `params` and `infer_samples_per_sec`.
"""

import contextlib
import csv
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax import query
from vit_jax.checkpoint.files.fetch import fetch
from vit_jax.errors import UserError, some

Row = dict[str, Any]

INDEX = "index.csv"
PUBLISHED = f"gs://vit_models/augreg/{INDEX}"
UPSTREAM, ADAPTED = "final_val", "adapt_final_val"
FILE, ADAPTED_FILE = "filename", "adapt_filename"


class Index(NamedTuple):
    """The table.

    Attributes:
      columns: Name -> `float` where all cells are numbers, else `str`.
      rows: A value a column: an int, a float, a text, or None for an empty cell.
    """

    columns: dict[str, type]
    rows: list[Row]

    def best(self, model: str) -> Row | None:
        """The ImageNet-21k checkpoint of a model (`R_Ti_16`) with the best upstream accuracy.

        It is of 300 epochs, as the original chooses it; None if there is none.
        """
        fitting = (
            row
            for row in self.rows
            if row["ds"] == "i21k"
            and str(row[FILE]).partition("-")[0] == model
            and row[UPSTREAM] is not None
        )
        return max(fitting, key=lambda row: row[UPSTREAM], default=None)

    def chosen(self, text: str) -> list[Row]:
        """The rows that a query means (see `vit_jax.query`), the best after fine-tuning first.

        Raises UserError for what is no query.
        """
        is_meant = query.compiled(text, self.columns)
        return sorted(filter(is_meant, self.rows), key=_adapted, reverse=True)


def _adapted(row: Row) -> float:
    return -math.inf if row[ADAPTED] is None else row[ADAPTED]


def read_index(location: str, needed: Mapping[str, type]) -> Index:
    """The index of a folder or bucket of AugReg's checkpoints.

    Args:
      location: Path or address of the table.
      needed: Columns that must be there, and whether they must be numbers, `float`, or `str`.

    Raises:
      UserError: for a table that cannot be had or read, or lacks what is needed.
    """
    path = fetch(location)
    names, *cells = _cells(path)
    if missing := [name for name in needed if name not in names]:
        raise UserError(
            f"{str(path)!r} is no index of AugReg's checkpoints: it has no {some(missing)} among "
            f"its columns {some(names, 25)}"
        )
    kinds, columns = zip(*(_column(column) for column in zip(*cells, strict=True)), strict=True)
    types = dict(zip(names, kinds, strict=True))
    if wrong := [name for name, kind in needed.items() if kind is float and types[name] is str]:
        raise UserError(f"{str(path)!r}: expected nothing but numbers as {some(wrong)}")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return Index(types, rows)


def _cells(path: pathlib.Path) -> list[list[str]]:
    """The lines of a table, that of its names first; at least one more, all of one length."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file, strict=True) if line]
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (csv.Error, ValueError) as error:
        raise UserError(f"{str(path)!r} is no table of checkpoints: {error}") from error
    if len(lines) < 2:
        raise UserError(f"{str(path)!r} lists no checkpoints")
    names = lines[0]
    if len(set(names)) != len(names):
        raise UserError(f"{str(path)!r} has a column twice: {some(names, 25)}")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(names):
            raise UserError(
                f"{str(path)!r}, row {number}: expected {len(names)} cells, found {len(line)}"
            )
    return lines


def _column(cells: Sequence[str]) -> tuple[type, list[Any]]:
    """A column as numbers if all of its cells are some, else as texts; None for an empty cell."""
    try:
        return float, [_number(cell) for cell in cells]
    except ValueError:
        return str, [cell or None for cell in cells]


def _number(cell: str) -> int | float | None:
    """The number in a cell; None for an empty one, and for `nan`, as pandas writes some."""
    with contextlib.suppress(ValueError):
        return int(cell)
    number = float(cell or "nan")
    return None if math.isnan(number) else number

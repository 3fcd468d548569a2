"""Weight names as data: tables of rows, and one engine that reads a table in either direction.

A row is *(their name, our name or names, einops pattern theirs -> ours)*. The inverse swaps the
pattern's two sides, so an export cannot disagree with the import. Several of our names mean that
the pattern's leading right-hand axis is split over them; parts of it that must be zero have none.

`Imported` and `Exported` are lazy mappings: a tensor is computed when it is asked for, and they
nest, so that a file can be converted to another tensor by tensor.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from einops import EinopsError, rearrange

from vit_jax.errors import UserError

SAME = "... -> ..."
MAX_LISTED = 60


class Rule(NamedTuple):
    """One row: `theirs` holds what our names hold, after `pattern` (einops, theirs -> ours).

    `axes` are sizes of named axes that shapes leave open, such as `heads`. `statistic` says that
    the row is a running statistic, which Flax keeps apart from parameters. `zeros` are the places,
    along the leading axis of the pattern's right-hand side, of parts that we have no tensor for:
    they must be zero, and are written as zeros.
    """

    theirs: str
    ours: tuple[str, ...]
    pattern: str = SAME
    axes: tuple[tuple[str, int], ...] = ()
    statistic: bool = False
    zeros: tuple[int, ...] = ()


Table = list[Rule]


def rule(
    theirs: str,
    ours: str | tuple[str, ...],
    pattern: str = SAME,
    *,
    statistic: bool = False,
    zeros: tuple[int, ...] = (),
) -> Table:
    """A table of one row; tables add up with `+`."""
    ours = (ours,) if isinstance(ours, str) else ours
    return [Rule(theirs, ours, pattern, statistic=statistic, zeros=zeros)]


def under(theirs: str, ours: str, table: Iterable[Rule], sep: str = ".", **axes: int) -> Table:
    """Puts a table below a module: its name on their side, its name on ours (or "": none).

    `axes` are sizes for the rows that do not have them yet: stages differ in their `heads`.
    """
    theirs += sep if theirs else ""
    ours += "/" if ours else ""
    return [
        r._replace(
            theirs=f"{theirs}{r.theirs}",
            ours=tuple(f"{ours}{o}" for o in r.ours),
            axes=tuple((axes | dict(r.axes)).items()),
        )
        for r in table
    ]


class Imported(Mapping[str, np.ndarray]):
    """Our tensors, made on demand from theirs.

    Args:
      rules: The table.
      theirs: Their tensors by name, with exactly the table's names (else UserError).
      ignore: Regular expressions (full match) of their names that carry no information.
      **axes: Sizes of named axes for every row that does not have its own.
    """

    def __init__(self, rules: Table, theirs: Mapping, *, ignore: Iterable[str] = (), **axes: int):
        names = {n for n in theirs if not any(re.fullmatch(p, n) for p in ignore)}
        require_names({r.theirs for r in rules}, names)
        self._rows = {name: (r, i) for r in rules for i, name in enumerate(r.ours)}
        self._theirs, self._axes = theirs, axes
        self._last: tuple[Rule | None, Any] = (None, None)

    def __getitem__(self, name: str) -> np.ndarray:
        row, index = self._rows[name]
        if self._last[0] is not row:  # one row of several names is read once, not once a name
            x = _apply(row.theirs, self._theirs[row.theirs], row.pattern, row, self._axes)
            self._last = (row, _without_zeros(x, row) if row.zeros else x)
        return self._last[1][index] if _parts(row) > 1 else self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class Exported(Mapping[str, np.ndarray]):
    """Their tensors, made on demand from ours: the same table, its patterns swapped."""

    def __init__(self, rules: Table, ours: Mapping, **axes: int):
        require_names({o for r in rules for o in r.ours}, set(ours))
        self._rows = {r.theirs: r for r in rules}
        self._ours, self._axes = ours, axes

    def __getitem__(self, name: str) -> np.ndarray:
        row = self._rows[name]
        parts = [self._ours[o] for o in row.ours]
        if len({np.shape(p) for p in parts}) > 1:
            shapes = {o: np.shape(p) for o, p in zip(row.ours, parts, strict=True)}
            raise UserError(f"{name!r} is made of tensors that must have one shape; got {shapes}")
        for place in sorted(row.zeros):
            parts.insert(place, np.zeros_like(parts[0]))
        left, right = row.pattern.split("->")
        x = _stacked(parts, right, left) if len(parts) > 1 else parts[0]
        return _apply(", ".join(row.ours), x, f"{right} -> {left}", row, self._axes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _stacked(parts: list[np.ndarray], ours: str, theirs: str) -> np.ndarray:
    """`np.stack(parts)`, in memory beside the axis that it precedes in `theirs`, as in '(n h k) d'.

    So what follows can turn axes without a copy of its own.
    """
    first, *others = ours.split()
    neighbour = re.search(rf"\b{first} (\w+)", theirs)
    if neighbour is None or neighbour[1] not in others:
        return np.stack(parts)
    axis = others.index(neighbour[1])
    return np.moveaxis(np.stack(parts, axis), axis, 0)


def _parts(row: Rule) -> int:
    return len(row.ours) + len(row.zeros)


def _without_zeros(x: np.ndarray, row: Rule) -> np.ndarray:
    """The parts of a tensor that have names of ours; UserError where another is not zero."""
    for place in row.zeros:
        if wrong := np.count_nonzero(x[place]):
            raise UserError(
                f"{row.theirs!r}: expected zeros in part {place + 1} of {_parts(row)}, for which "
                f"the model has no parameter; {wrong} of its {x[place].size} numbers are none"
            )
    return np.delete(x, row.zeros, axis=0)


def _apply(name: str, x, pattern: str, row: Rule, axes: Mapping[str, int]) -> np.ndarray:
    known = {**axes, **dict(row.axes), "n": _parts(row)}
    sizes = {a: s for a, s in known.items() if re.search(rf"\b{a}\b", pattern)}
    try:
        return rearrange(x, pattern, **sizes)
    except EinopsError:
        wanted = pattern.split("->")[0].strip()
        given = f" with {sizes}" if sizes else ""
        raise UserError(
            f"{name!r}: expected axes {wanted!r}{given}; got shape {np.shape(x)}"
        ) from None


def require_names(expected: set[str], got: set[str], what: str = "tensors") -> None:
    """Raises UserError, listing both sides, unless the names are exactly the expected ones."""
    if difference := names_differ(expected, got):
        raise UserError(f"{what} do not fit: {difference}")


def names_differ(expected: set[str], got: set[str]) -> str:
    """What is missing and what is not expected, in words; '' if nothing is."""
    missing, extra = sorted(expected - got), sorted(got - expected)
    if not missing and not extra:
        return ""
    return (
        f"{len(missing)} missing, {len(extra)} unexpected of"
        f" {len(expected)} expected and {len(got)} found\n"
        f"  missing: {listed(missing)}\n  unexpected: {listed(extra)}"
    )


def listed(names: list[str]) -> str:
    """The names, comma separated; beyond MAX_LISTED only their count."""
    more = f", … and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return (", ".join(names[:MAX_LISTED]) + more) or "none"


def count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the pattern's group takes at the beginning of the names."""
    return len({m[1] for n in names if (m := re.match(pattern, n))})


def counts(names: Iterable[str], pattern: str, first: int = 0) -> tuple[int, ...]:
    """For each number of the pattern's first group, from `first` on, how many its second takes."""
    pairs = {(int(m[1]), m[2]) for n in names if (m := re.match(pattern, n))}
    stages = {i for i, _ in pairs}
    return tuple(sum(i == j for i, _ in pairs) for j in range(first, first + len(stages)))

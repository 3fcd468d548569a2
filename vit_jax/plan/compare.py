"""Two plans side by side, out of the files that `vit-jax plan --json` printed. Without JAX."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vit_jax.errors import UserError

# What a plan is of, in the order in which a difference is told.
_ABOUT = ("topology", "device_kind", "devices", "mesh", "batch", "accum_steps")
_NEEDED = (*_ABOUT, "memory", "hbm_traffic", "flops", "seconds", "classes", "collectives")
_LIMITS = {
    "compute": "FLOPs at peak",
    "hbm": "HBM traffic",
    "cycles": "estimated cycles",
    "network": "between slices",
}
_SHOWN_CLASSES = 10  # those that differ most


class Row(NamedTuple):
    """One quantity of a device and step; a side is None where its plan does not know it."""

    name: str
    unit: str
    first: float | None
    second: float | None

    @property
    def difference(self) -> float | None:
        """What the second has more, in `unit`."""
        if self.first is None or self.second is None:
            return None
        return self.second - self.first

    def cells(self) -> tuple[str, ...]:
        """name, first, second, difference and ratio, as text; what is unknown is empty."""
        difference, ratio = self.difference, None
        if difference is not None and self.first:
            ratio = f"{1 + difference / self.first:.2f}"
        return (
            f"{self.name} ({self.unit})",
            *("" if side is None else f"{side:,.2f}" for side in (self.first, self.second)),
            "" if difference is None else f"{difference:+,.2f}",
            ratio or "",
        )


def read(path: str) -> dict[str, Any]:
    """A plan as `Plan.to_dict` gives it.

    Raises:
      UserError: if the file is none that `vit-jax plan --json` printed.
    """
    try:
        plan = json.loads(Path(path).read_text())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a plan: no JSON, {error}") from error
    missing = [key for key in _NEEDED if key not in plan] if isinstance(plan, dict) else _NEEDED
    if missing:
        raise UserError(
            f"{path}: not a plan: it has no {missing[0]!r}; "
            "write one with `vit-jax plan --config … --json > FILE`"
        )
    return plan


def changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """One line about each thing that the two plans are of and that differs."""
    return [
        f"{name}: {first[name]} -> {second[name]}" for name in _ABOUT if first[name] != second[name]
    ]


def rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    """Memory, traffic, FLOPs and least times of a step on one device."""
    found = [
        Row(f"memory {part}", "GB", *_sides(first["memory"], second["memory"], part, 1e-9))
        for part in first["memory"]
    ]
    found.append(Row("HBM traffic", "GB", *_sides(first, second, "hbm_traffic", 1e-9)))
    found.append(Row("FLOPs", "T", *_sides(first, second, "flops", 1e-12)))
    for limit, name in _LIMITS.items():
        sides = _sides(first["seconds"], second["seconds"], limit, 1e3)
        if sides != (None, None):
            found.append(Row(f"time, {name}", "ms", *sides))
    least = (1e3 * max(plan["seconds"].values(), default=0) or None for plan in (first, second))
    return [*found, Row("time at least", "ms", *least)]


def class_rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    """HBM traffic of the classes of operations that differ, the largest difference first."""
    return _parts(first["classes"], second["classes"], "hbm_bytes", 1e-9, "GB")[:_SHOWN_CLASSES]


def collective_rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    """Megabytes of the collectives that differ, the largest difference first."""
    return _parts(first["collectives"], second["collectives"], "bytes", 1e-6, "MB")


def to_dict(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for JSON."""
    tables = {"step": rows, "classes": class_rows, "collectives": collective_rows}
    return {
        "changed": changed(first, second),
        **{
            name: [{**row._asdict(), "difference": row.difference} for row in table(first, second)]
            for name, table in tables.items()
        },
    }


def _sides(
    first: Mapping, second: Mapping, key: str, scale: float
) -> tuple[float | None, float | None]:
    one, other = (None if plan.get(key) is None else scale * plan[key] for plan in (first, second))
    return one, other


def _parts(first: Mapping, second: Mapping, key: str, scale: float, unit: str) -> list[Row]:
    """Rows of the entries of two tables that differ; an entry that one lacks is 0 there."""
    found = [
        Row(name, unit, *(scale * plan.get(name, {}).get(key, 0) for plan in (first, second)))
        for name in {**first, **second}
    ]
    return sorted(
        (row for row in found if row.difference), key=lambda row: -abs(row.difference or 0)
    )

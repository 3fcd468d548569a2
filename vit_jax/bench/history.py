"""A file of measurements, and whether the newest is slower than those before it. Without JAX.

Each line is one measurement as JSON. Only measurements of the same thing on the same machine are
set against each other. Where a peer was measured in the same rounds, what is compared is our
seconds divided by the peer's, round by round: a busy machine, which slows both, is no regression.
"""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_jax.errors import UserError

_EARLIER = 10  # the latest so many make the baseline
_SIGMAS, _LEAST = 3.0, 0.02  # a change below three standard errors or 2 % is noise


class Verdict(NamedTuple):
    """The newest median over the baseline's; `noise` is how much of it may be chance."""

    ratio: float
    noise: float
    earlier: int

    @property
    def slower(self) -> bool:
        return self.ratio > 1 + self.noise

    @property
    def text(self) -> str:
        if not self.earlier:
            return "the first measurement of this on this machine"
        kind = "SLOWER" if self.slower else "faster" if self.ratio < 1 - self.noise else "the same"
        return (
            f"{kind}: {self.ratio:.3f} of the median time of {self.earlier} earlier, "
            f"within {self.noise:.1%} is noise"
        )


def entry(about: Mapping[str, Any], ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    """One measurement.

    Args:
      about: What was measured, and on which machine; equal in all that can be compared.
      ours, peer: Seconds of each round; `peer` is empty where there is none.
    """
    values = [a / b for a, b in zip(ours, peer, strict=True)] if peer else list(ours)
    return {"about": dict(about), "values": values}


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """All measurements, the oldest first; none if there is no such file.

    Raises:
      UserError: for a line that is no measurement, and for a file in a folder that is not there.
    """
    if not Path(path).parent.is_dir():
        raise UserError(f"{path}: there is no folder {Path(path).parent}; make it first")
    if not Path(path).exists():
        return []
    entries = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            found = json.loads(line)
            values = [float(value) for value in found["values"]]
            if (
                not isinstance(found["about"], dict)
                or not 0 < min(values) <= max(values) < math.inf
            ):
                raise TypeError
            entries.append({**found, "values": values})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: line {number} is no measurement of `vit-jax bench --history`"
            ) from error
    return entries


def append(path: str | os.PathLike, entries: Sequence[Mapping[str, Any]]) -> None:
    """Adds measurements at the end; the file is as before or complete, whatever happens."""
    old = Path(path).read_bytes() if Path(path).exists() else b""
    temporary = Path(f"{path}.tmp")
    new = "".join(json.dumps(found, ensure_ascii=False) + "\n" for found in entries)
    temporary.write_bytes(old + new.encode())
    os.replace(temporary, path)


def judge(newest: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> Verdict:
    """Compares a measurement with those of the same thing among `earlier`.

    Noise is three standard errors of the difference of two medians: the newest's by its rounds, the
    baseline's by its rounds or by how its measurements differ, whichever is more; at least 2 %.
    """
    same = [e["values"] for e in earlier if e["about"] == newest["about"]][-_EARLIER:]
    if not same:
        return Verdict(1.0, 0.0, 0)
    medians = [statistics.median(values) for values in same]
    baseline = statistics.median(medians)
    between = _sigma(medians)
    within = statistics.median([_error(values) for values in same])
    noise = _SIGMAS * math.hypot(_error(newest["values"]), max(between, within)) / baseline
    ratio = statistics.median(newest["values"]) / baseline
    return Verdict(ratio, max(noise, _LEAST), len(same))


def _sigma(values: Sequence[float]) -> float:
    """A standard deviation that single outliers do not move: of the normal distribution's MAD."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median([abs(value - middle) for value in values])


def _error(values: Sequence[float]) -> float:
    """The standard error of the median of normally distributed values."""
    return math.sqrt(math.pi / 2) * _sigma(values) / math.sqrt(len(values))

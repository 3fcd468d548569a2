"""Lengths of a run's parts as a config gives them: steps, or a text with a unit such as '90epochs'.

A text follows the batch: 90 epochs are as many images in batches of any size. No JAX here.
"""

import dataclasses
import math
import re
from typing import Any

from vit_jax.ranges import Range

# The units of which a number of steps can be made, and those of time, in seconds.
STEP_UNITS = ("steps", "epochs", "images", "%")
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_ONE = {"step": "steps", "epoch": "epochs", "image": "images"}
_TEXT = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?) ?([a-z]+|%)")


@dataclasses.dataclass(frozen=True)
class Duration(Range):
    """A range of whole numbers of steps, in whose place a text with a unit may stand.

    Attributes:
      units: The units that the field may have.
    """

    integer: bool = True
    units: tuple[str, ...] = STEP_UNITS

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, str):
            return super().__contains__(value)
        amount, unit = split(value)
        return unit in self.units and (amount > 0 or not self.low) and amount < math.inf

    def __str__(self) -> str:
        shown = ", ".join(f"'{10 if unit in SECONDS else 5}{unit}'" for unit in self.units)
        return f"{super().__str__()} or a text such as {shown}"


def split(text: str) -> tuple[float, str]:
    """A text's number and unit, such as (90.0, 'epochs'); the unit is '' if it is none of ours."""
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        return math.nan, ""
    unit = _ONE.get(match[2], match[2])
    return float(match[1]), unit if unit in (*STEP_UNITS, *SECONDS) else ""


def seconds(value: int | str | None) -> float | None:
    """The seconds of a text such as '10min'; None for what is counted in steps."""
    if not isinstance(value, str):
        return None
    amount, unit = split(value)
    return amount * SECONDS[unit] if unit in SECONDS else None


def steps(value: int | str, *, batch: int, epoch_images: int, total: int | None = None) -> int:
    """The whole number of steps that is nearest to a duration; at least 1 if it is not 0.

    Args:
      value: A number of steps, or a text in one of `STEP_UNITS`.
      batch: Images in a step.
      epoch_images: Images in an epoch.
      total: Steps of the whole run, of which '%' is a share.
    """
    if not isinstance(value, str):
        return value
    amount, unit = split(value)
    in_steps = {
        "steps": 1.0,
        "epochs": epoch_images / batch,
        "images": 1.0 / batch,
        "%": (total or 0) / 100,
    }
    return max(round(amount * in_steps[unit]), 1) if amount else 0

"""The range of a number that somebody sets, and the one message for a number outside of it."""

import dataclasses
import math
import numbers
from collections.abc import Iterator
from typing import Any

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers that a field may have; a field of several numbers, each of them.

    Attributes:
      low: The least number, or with `above` the number that all must exceed; None for no bound.
      high: The greatest number, or with `below` the number that none may reach; None for no bound.
      above: Whether `low` itself is excluded.
      below: Whether `high` itself is excluded.
      integer: Whether the numbers must be whole.
      also: What is allowed too, such as None.
      rules: Whether the field holds pairs (pattern, number).
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    integer: bool = False
    also: tuple[Any, ...] = ()
    rules: bool = False

    def __contains__(self, number: Any) -> bool:
        if any(number is x or (type(number) is type(x) and number == x) for x in self.also):
            return True
        kind = numbers.Integral if self.integer else numbers.Real
        if isinstance(number, bool) or not isinstance(number, kind):
            return False
        try:
            number = float(number)
        except OverflowError:  # an integer beyond every float
            return False
        if not math.isfinite(number):
            return False
        low_fits = self.low is None or (number > self.low if self.above else number >= self.low)
        high_fits = self.high is None or (number < self.high if self.below else number <= self.high)
        return low_fits and high_fits

    def __str__(self) -> str:
        text = "an integer" if self.integer else "a finite number"
        if self.low is not None and self.high is not None:
            ends = "(" if self.above else "[", ")" if self.below else "]"
            text = f"{'an integer ' * self.integer}in {ends[0]}{self.low}, {self.high}{ends[1]}"
        elif self.low is not None:
            text += f" {'above' if self.above else 'of at least'} {self.low}"
        return " or ".join([text, *map(str, self.also)])

    def require(self, field: str, value: Any) -> None:
        """Raises UserError, which names the field, the range and the value, for a value outside."""
        if any(number not in self for number in self._numbers(value)):
            raise UserError(f"{field} must be {self}, got {value!r}")

    def _numbers(self, value: Any) -> Iterator[Any]:
        if self.rules:
            value = [rule[-1] if isinstance(rule, (list, tuple)) else rule for rule in value]
            yield from (number for number in value if not isinstance(number, bool))
        elif isinstance(value, (list, tuple)):
            for part in value:
                yield from self._numbers(part)
        else:
            yield value


def at_least(low: float, **more: Any) -> Range:
    return Range(low, **more)


def above(low: float, **more: Any) -> Range:
    return Range(low, above=True, **more)


def integer(low: int | None, *also: Any) -> Range:
    return Range(low, integer=True, also=also)


ANY = Range()
SHARE = Range(0, 1)  # both ends are possible
RATE = Range(0, 1, below=True)  # of what is dropped: all of it leaves nothing to divide by
COUNT = integer(1)

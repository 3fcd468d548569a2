"""The one exception for bad input, and the hint that goes with it."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Bad input from outside: the command line prints its message and exits with status 2.

    The message says what was expected, what came, and what to do next.
    """


class Preempted(Exception):
    """A run was told to stop (SIGTERM) and has saved its state: exit status 143."""

    def __init__(self, step: int):
        super().__init__(
            f"stopped by SIGTERM after step {step}, which is saved; the same command goes on"
        )


def suggest(name: str, choices: Iterable[str], most: int = 3) -> str:
    """` Did you mean 'a' or 'b'?` for the choices closest to `name`, or an empty string."""
    by_lower = {c.lower(): c for c in choices}
    close = difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(by_lower[c]) for c in close)}?" if close else ""


def chosen(name: str, choices: Mapping[str, T], what: str) -> T:
    """The choice of that name.

    Raises:
      UserError: for an unknown name, with all names; `what` says what they name.
    """
    if name not in choices:
        known = ", ".join(choices)
        raise UserError(f"unknown {what} {name!r}.{suggest(name, choices)} Known: {known}")
    return choices[name]


def some(names: Sequence[str], most: int = 4) -> str:
    """The first `most` names, none longer than 80 characters, and how many are left out."""
    more = f", … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(short(name) for name in names[:most]) + more


def short(text: str, most: int = 80) -> str:
    """`text`, or its two ends and an ellipsis if it is longer than `most` characters."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"

"""The one exception for bad input, and the hint that goes with it."""

import difflib
from collections.abc import Iterable, Mapping
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

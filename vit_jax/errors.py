"""How a command ends: the exit statuses, the exceptions that lead to them, and hints."""

import difflib
import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Status(enum.IntEnum):
    """The exit status of a command; the table in docs/distributed.md says what to do next.

    A status above 128 is 128 and the number of a signal, as shells report it.
    """

    DONE = 0
    FAILED = 1  # a traceback: an error of this program
    BAD_INPUT = 2
    DIVERGED = 3
    INTERRUPTED = 130  # SIGINT
    LOST_PEER = 134  # SIGABRT, by which JAX ends a process whose peers are gone, if we do not
    KILLED = 137  # SIGKILL, which the system sends, for example when memory runs out
    BROKEN_PIPE = 141  # SIGPIPE
    HUNG = 142  # SIGALRM: the watchdog's time ran out
    PREEMPTED = 143  # SIGTERM


class UserError(ValueError):
    """Bad input from outside: the command line prints its message and exits with status 2.

    The message says what was expected, what came, and what to do next.
    """

    status = Status.BAD_INPUT


class Diverged(Exception):
    """A run no longer learns: the same command would end in the same way. Exit status 3."""

    status = Status.DIVERGED


class Preempted(Exception):
    """A run was told to stop (SIGTERM) and has saved its state: exit status 143."""

    status = Status.PREEMPTED

    def __init__(self, step: int):
        super().__init__(
            f"stopped by SIGTERM after step {step}, which is saved; the same command goes on"
        )


def suggest(name: str, choices: Iterable[str], most: int = 3) -> str:
    """` Did you mean 'a' or 'b'?` for the choices closest to `name`, or an empty string."""
    by_lower = {c.lower(): c for c in choices}
    close = difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(by_lower[c]) for c in close)}?" if close else ""


def chosen(name: str, choices: Mapping[Any, T], what: str) -> T:
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

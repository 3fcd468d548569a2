"""What Orbax and TensorStore say besides the errors that they raise, and what an error means."""

import functools
import logging
import sys
from typing import Any


def reason(error: BaseException) -> str:
    """The innermost cause that TensorStore's message names, without the error codes around it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0].partition(" [os_error_code")[0].rpartition(": ")[2]


def mute() -> None:
    """Hides what is said of errors that are also raised, and of what is no error in a run."""
    logging.getLogger("absl").addFilter(_is_news)
    _mute_late_writes()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record should be shown: False for three kinds of records of Orbax.

    Orbax logs every error that it also raises, with a traceback for each of its threads. It warns
    about every checkpoint without figures, although a run evaluates only at some steps; and about
    one without arrays, which those of all processes but the first are for a run at an address.
    """
    return "orbax" not in record.pathname or not (
        record.levelno >= logging.ERROR
        or "did not provide metrics" in record.getMessage()
        or "No per-process OCDBT" in record.getMessage()
    )


@functools.cache
def _mute_late_writes() -> None:
    """Hides the tracebacks that TensorStore prints after a failed write.

    When one write fails, Orbax closes its event loop. TensorStore's other writes end later, report
    to the closed loop, and print a traceback each, which no `except` clause can catch.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook

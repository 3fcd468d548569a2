"""Ctrl-C and SIGTERM while a compiler works, which listens to neither."""

import atexit
import concurrent.futures
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

_TERMINATED = 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt, nothing is meant to catch it on its way."""


def interruptible(call: Callable[[], T]) -> T:
    """The result of `call`, which works in a thread of its own.

    Python answers signals between two of the main thread's instructions: a compiler called there
    would hold them back for minutes. Where one ends the wait, the compiler goes on; so that the
    interpreter is not taken down under it, the process then ends without taking it down.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="compiler", daemon=True).start()
    try:
        return outcome.result()
    except BaseException as error:
        if not outcome.done():
            status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else _TERMINATED
            atexit.register(_leave, outcome, status)
        raise


def _leave(outcome: concurrent.futures.Future, status: int) -> None:
    if not outcome.done():
        sys.stdout.flush()
        os._exit(status)


@contextlib.contextmanager
def terminable(prog: str = "vit-jax") -> Iterator[None]:
    """SIGTERM unwinds what runs inside, prints one line and exits with status 143."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Only a program's main thread may have handlers.
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except Terminated:
        print(f"{prog}: stopped by SIGTERM", file=sys.stderr)
        raise SystemExit(_TERMINATED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated

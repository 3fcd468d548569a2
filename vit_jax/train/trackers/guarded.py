"""A tracker in a thread of its own, which the run does not wait for."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

# Reports that wait for a tracker that is slow; more are not given to it.
WAITING = 10_000
# After so many calls in a row that fail, a tracker is tried once in so many seconds only.
FAILURES, PAUSE = 10, 300.0

Call = Callable[[Any], None]


class Guarded:
    """Calls a tracker from a thread, in which it may fail or hang without the run's noticing.

    A report that fails is lost to the tracker, and the next one is tried.

    Args:
      name: The name of the tracker, for messages.
      begin: A function that starts the tracker. It is called in the thread, at once, and again with
        the next report if it fails.
    """

    def __init__(self, name: str, begin: Callable[[], Any]):
        self._name, self._begin = name, begin
        self._queue: queue.Queue[Call] = queue.Queue(WAITING)
        self._tracker: Any = None
        self._failures = self._lost = 0
        self._again = 0.0  # when a tracker that keeps failing is tried next
        self._ending: str | None = None
        self._ended = threading.Event()
        self._ask(_nothing)
        # A thread that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name=f"tracker {name}", daemon=True).start()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Asks for the figures of a step to be written, and returns at once."""
        figures = dict(scalars)
        self._ask(lambda tracker: tracker.write(step, figures))

    def finish(self, ending: str) -> None:
        """Asks for the tracker to be closed after all reports, and returns at once."""
        self._ending = ending
        self._ask(_nothing)  # which wakes the thread

    def wait(self, until: float) -> None:
        """Waits until the tracker is closed, or `time.monotonic()` is `until`."""
        if not self._ended.wait(max(until - time.monotonic(), 0.0)):
            self._warn("has not ended in time, and may lack the last reports")
        elif self._lost:
            self._warn(f"lacks {self._lost} reports")

    def _ask(self, call: Call) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._lost += call is not _nothing

    def _work(self) -> None:
        while self._ending is None or not self._queue.empty():
            self._call(self._queue.get())
        ending = self._ending
        if self._tracker is not None:
            self._again = 0.0
            self._call(lambda tracker: tracker.close(ending))
        self._ended.set()

    def _call(self, call: Call) -> None:
        if time.monotonic() < self._again:
            self._lost += call is not _nothing
            return
        try:
            if self._tracker is None:
                self._tracker = self._begin()
            call(self._tracker)
            self._failures, self._again = 0, 0.0
        except BaseException as error:  # Some libraries end the process when they fail.
            self._failures += 1
            self._lost += call is not _nothing
            if self._failures >= FAILURES:
                self._again = time.monotonic() + PAUSE
            if self._failures == 1:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                self._warn(f"failed, and the run goes on: {reason}")

    def _warn(self, what: str) -> None:
        logging.warning("tracker %s %s; metrics.jsonl has everything", self._name, what)


def _nothing(tracker: Any) -> None:
    """A call that only starts the tracker."""

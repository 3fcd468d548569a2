"""Ends a run that hangs, and says where it does."""

import collections
import faulthandler
import math
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.devices import peers
from vit_jax.errors import Status
from vit_jax.train.actions import Action, Step
from vit_jax.train.clock import SAVING, STEPPING, WAITING, Clock
from vit_jax.train.preemption import Preemption

_SAMPLES = 101  # from which the median time of a step is taken


class Watchdog(Action):
    """A thread that ends the process when no step ends for too long.

    Steps are dispatched long before they are computed, so that the thread itself looks which of
    them are done. While the run waits for data or for a step, it hangs if no step ends within
    `factor` times the median time of a step, and within `at_least` seconds. What it does besides
    has a limit of its own. A process that waits for its data while the others wait for it has less
    time: instead of `at_least`, that in which a lost process is noticed. On the way out the stacks
    of all threads go to stderr, and the other processes are told.

    Args:
      config: `config.watchdog`; see `vit_jax.configs.common`.
      clock: The clock of the run, which knows what it is doing.
      preemption: Whether the run was told to stop.
      end: A function that ends the process with a status after a line of text.
      now: A function that gives the time, in seconds of `time.monotonic`.
    """

    def __init__(
        self,
        config: ConfigDict,
        clock: Clock,
        preemption: Preemption,
        end: Callable[[Status, str], None] = peers.end_all,
        now: Callable[[], float] = time.monotonic,
    ):
        self._config, self._clock, self._preemption, self._end = config, clock, preemption, end
        self._now = now
        self._dispatched: collections.deque[tuple[int, Any]] = collections.deque()
        self._seconds: collections.deque[float] = collections.deque(maxlen=_SAMPLES)
        # The last step that is done, when the last one was seen to be done, and when the run last
        # did something besides.
        self._done, self._when, self._paused = 0, now(), 0.0
        self._compiled = False
        self._asked: float | None = None  # when SIGTERM was noticed
        self._stop = threading.Event()

    def __enter__(self):
        self._when = self._now()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()

    def after(self, step: Step) -> None:
        self._dispatched.append((step.number, step.scalars["loss"]))

    def limit(self, doing: str, at_least: float | None = None) -> float:
        """The seconds that the run may do this without the end of a step; infinite for no limit.

        Args:
          doing: What it does, in the words of `train.clock`.
          at_least: What stands for `config.watchdog.at_least`; None for that itself.
        """
        if doing not in (WAITING, STEPPING):
            seconds: Any = self._config[doing]
            return float(seconds) or math.inf
        if not self._config.factor:
            return math.inf
        if not self._seconds:  # No step is done but, at most, that which was compiled.
            return self._config.compiling or math.inf
        least = self._config.at_least if at_least is None else at_least
        return max(least, self._config.factor * statistics.median(self._seconds))

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._config.at_least / 10)):
            self.look(self._now())

    def look(self, now: float) -> None:
        """Ends the process if the run hangs at the time `now`."""
        self._note(now)
        doing, since = self._clock.doing
        if doing in (WAITING, STEPPING):
            since = max(self._when, self._paused)
        else:
            self._paused = now
        if now - since > self.limit(doing):
            self._say(Status.HUNG, f"{doing} for {now - since:.0f} s")
        elif doing == WAITING and self._others_wait_too_long(now, since):
            self._say(Status.HUNG, f"{doing} for {now - since:.0f} s, and the others wait for it")
        elif self._asked is None and self._preemption.noticed():
            self._asked = now
        elif self._asked and self._config.grace and doing != SAVING:
            alive = max(self._asked, self._when)
            if now - alive > self._config.grace:
                self._say(
                    Status.PREEMPTED,
                    f"{doing}, {self._config.grace:g} s after SIGTERM; nothing is saved",
                )

    def _others_wait_too_long(self, now: float, since: float) -> bool:
        """Whether other processes wait too long for this one, whose steps are done at `since`."""
        waited = peers.waited_for()
        return waited is not None and now - max(since, waited.since) > self.limit(
            WAITING, min(waited.patience, self._config.at_least)
        )

    def _note(self, now: float) -> None:
        """Notes which of the dispatched steps are done, and how long they took."""
        done = 0
        while self._dispatched and self._dispatched[0][1].is_ready():
            self._done, _ = self._dispatched.popleft()
            done += 1
        if done:
            if self._compiled:
                self._seconds.append((now - max(self._when, self._paused)) / done)
            self._compiled, self._when = True, now

    def _say(self, status: Status, how: str) -> None:
        if self._stop.is_set():
            return
        self._stop.set()
        sys.stderr.flush()
        faulthandler.dump_traceback(file=2, all_threads=True)
        after = f"after step {self._done}" if self._compiled else "before the end of a step"
        self._end(
            status,
            f"process {jax.process_index()} on {socket.gethostname()} hangs {after}: {how}. The "
            "stacks of its threads are above",
        )

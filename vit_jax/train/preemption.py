"""Stopping a run on SIGTERM after the step is finished and the state is saved."""

import signal
import threading
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """A context manager in which a SIGTERM is noted and does not end the process.

    In a run of several processes, the runtime of `jax.distributed` receives the signal and makes
    all processes agree on the step to stop at. In a run of one process, this class installs its
    own signal handler.
    """

    def __init__(self) -> None:
        self._received = False
        self._before: signal._HANDLER = None

    def __enter__(self) -> Self:
        # Python lets only the main thread install signal handlers.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def after(self, step: int) -> bool:
        """Whether the run must stop after `step`; every process gets the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True

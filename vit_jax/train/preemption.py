"""SIGTERM: finish the step, save, leave."""

import signal
import threading
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Notes a SIGTERM instead of dying of it. A context manager.

    With several processes the runtime of `jax.distributed` takes the signal and makes all of them
    agree on a step; alone, a handler of ours does.
    """

    def __init__(self) -> None:
        self._received = False
        self._before: signal._HANDLER = None

    def __enter__(self) -> Self:
        # Only a program's main thread may have handlers.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def after(self, step: int) -> bool:
        """Whether the run is to stop after `step`, the same answer in every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True

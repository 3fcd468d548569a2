"""Stopping a run on SIGTERM after the step is finished and the state is saved."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Self, TypeVar

import jax
from jax.experimental import multihost_utils

from vit_jax.devices import peers

T = TypeVar("T")


# Where JAX keeps that a process received SIGTERM, for all processes to see.
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"


class GivenUp(Exception):
    """Something that can be done later was given up, because the run is to stop."""


class Preemption:
    """A context manager in which a SIGTERM is noted and does not end the process.

    In a run of several processes, the runtime of `jax.distributed` receives the signal and makes
    all processes agree on the call of `asked` that is the first to say so. In a run of one process,
    this class installs its own signal handler.
    """

    def __init__(self) -> None:
        self._received = False
        self._calls = 0
        self._before: signal._HANDLER = None
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def __enter__(self) -> Self:
        # Python lets only the main thread install signal handlers.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            # The number of a signal is written there at once, even while the main thread hangs.
            self._wakes = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            signal.set_wakeup_fd(self._wakes)
        self._woken.close()
        self._waker.close()

    def asked(self) -> bool:
        """Whether the run must stop; once this is True, it stays so.

        All processes must call this at the same places: they get the same answer at the same call.
        """
        if jax.process_count() > 1 and not self._received:
            # The runtime agrees on one number, and answers True for this number alone.
            self._calls += 1
            self._received = multihost_utils.reached_preemption_sync_point(self._calls)
        return self._received

    def noticed(self) -> bool:
        """Whether SIGTERM came to any process, although this run may not be able to act on it.

        Any thread may call it, also while the main thread hangs where it sees no signal.
        """
        if jax.process_count() > 1:
            return peers.stored(_NOTICE) is not None
        with contextlib.suppress(OSError):
            self._received = self._received or signal.SIGTERM in self._woken.recv(64)
        return self._received

    def until_asked(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches, of which all processes have the same number.

        Raises:
          GivenUp: between two batches, when the run must stop; in all processes at the same batch.
        """
        for batch in batches:
            if self.asked():
                raise GivenUp
            yield batch

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True

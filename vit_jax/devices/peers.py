"""Watches the other processes of a run, so that none of them waits for ever for one that is gone.

JAX watches too, but ends the process with some twenty lines of its own stack, and at once when
process 0 goes. So JAX's watch is set to a longer time and serves as a reserve, and this module
looks first: every process counts upwards in the store that `jax.distributed` keeps at process 0,
and reads the counters of the others. Beside this sign of life it says how many steps it has begun,
so that a process which lives, but does not come to a step, knows that the others wait for it.
"""

import atexit
import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from vit_jax.devices.relay import relay
from vit_jax.errors import Preempted, Status

HEARTBEAT_TIMEOUT = 100.0  # seconds
_ALIVE, _ENDED = "vit_jax/alive/", "vit_jax/ended/"
# How many times a counter moves within the timeout.
_BEATS = 8
# Seconds in which the others are told why this process ends at once.
_TELLING = 2.0
# What errors say of a collective, a barrier or a store that another process does not take part in.
_NETWORK = re.compile(
    "Gloo|NCCL|Connection (closed|reset)|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|[Bb]arrier"
)


class Waited(NamedTuple):
    """That other processes wait for this one.

    Attributes:
      since: Since when, in seconds of `time.monotonic`.
      patience: The seconds after which this process is to end, as one that is lost.
    """

    since: float
    patience: float


class Peers:
    """Counts upwards for the others to see, and ends this process when another one is lost.

    Args:
      store: The client of `jax.distributed`.
      process: The number of this process.
      count: The number of processes.
      timeout: The seconds without a sign of life after which a process is lost.
      end: A function that ends the process with a status after a line of text.
    """

    def __init__(
        self,
        store: Any,
        process: int,
        count: int,
        timeout: float,
        end: Callable[[Status, str], None],
    ):
        self._store, self._process, self._timeout, self._end = store, process, timeout, end
        now = time.monotonic()
        # The last value of each counter and when it came. What is stored at process 0 can only be
        # read while process 0 answers, so each answer is its sign of life too.
        self._seen: dict[int, tuple[str, float]] = dict.fromkeys(range(count), ("", now))
        self._hosts: dict[int, str] = {}
        # The steps that this process has begun; the number of them at which another process was
        # seen to have begun more, and when that was.
        self._begun, self._behind = 0, (-1, now)
        self._beat, self._looked = 0, now
        self._leaving = False

    def start(self) -> None:
        """Starts two threads; the second one notices when the first one gets no answer."""
        for work in (self.exchange, self.look):
            threading.Thread(target=self._repeat, args=[work], name="peers", daemon=True).start()

    def wait_for_verdict(self) -> None:
        """Waits as long as it takes to find a lost process, which ends this one."""
        time.sleep(self._timeout * (1 + 3 / _BEATS))

    def leave(self, reason: str = "", status: int = Status.DONE) -> None:
        """Stops watching; with a reason, tells the others that this process ends for it.

        JAX waits at the end for all processes, of which one may be gone. So this process ends with
        `status` after a while in any case, a short while if it ends for a reason of its own.
        """
        if self._leaving:
            return
        self._leaving = True
        if reason:
            with contextlib.suppress(Exception):
                self._store.key_value_set(f"{_ENDED}{self._process}", reason, allow_overwrite=True)
        patience = self._timeout / 4 if reason else shutdown_timeout(self._timeout) + 10
        last = threading.Timer(patience, os._exit, [int(status)])
        last.daemon = True
        last.start()

    def exchange(self) -> None:
        """Counts one further, and reads what the others have stored."""
        self._beat += 1
        try:
            mine = f"{self._beat} {self._begun} {socket.gethostname()}"
            self._store.key_value_set(f"{_ALIVE}{self._process}", mine, allow_overwrite=True)
            self._note(self._store.key_value_dir_get(_ALIVE))
            ended = self._store.key_value_dir_get(_ENDED)
        except Exception:  # The store is gone, or was closed because the run is at its end.
            return
        for key, reason in ended:
            if (number := _number(key)) != self._process:
                time.sleep(self._timeout / _BEATS)  # This one may be ending for the same reason.
                self._lose(f"{self.name(number)} has ended: {reason}")

    def look(self) -> None:
        """Ends this process if another one is silent for too long."""
        now = time.monotonic()
        if now - self._looked > self._timeout / 2:
            # This process itself was stopped, so that it cannot have seen the others.
            self._seen = {number: (value, now) for number, (value, _) in self._seen.items()}
        self._looked = now
        # While process 0 does not answer, nothing is known of the others, which may well live.
        answered = self._seen[0][1]
        silence = {i: (answered if i else now) - when for i, (_, when) in self._seen.items()}
        silent = [i for i in sorted(silence) if silence[i] > self._timeout and i != self._process]
        if silent:
            self._lose(
                f"{self.name(silent[0])} gave no sign of life for {self._timeout:g} s, and is "
                "taken for lost; the same command on all hosts goes on from the newest checkpoint"
            )

    def _repeat(self, work: Callable[[], None]) -> None:
        while True:
            work()
            time.sleep(self._timeout / _BEATS)

    def _note(self, counters: list[tuple[str, str]]) -> None:
        now, mine, most = time.monotonic(), self._begun, 0
        for key, value in counters:
            number = _number(key)
            _, begun, self._hosts[number] = value.split(" ", 2)
            most = max(most, int(begun))
            if value != self._seen[number][0]:
                self._seen[number] = value, now
        self._seen[0] = self._seen[0][0], now
        if most > mine != self._behind[0]:
            self._behind = mine, now

    def _lose(self, line: str) -> None:
        if not self._leaving:
            self._end(Status.LOST_PEER, line)

    def begin(self) -> None:
        """Counts a step that this process begins, and that ends when all have begun it."""
        self._begun += 1

    def waited_for(self) -> Waited | None:
        """Whether another process has begun a step that this one has not."""
        begun, since = self._behind
        # Two beats may have passed until this process could see it.
        return Waited(since, self._timeout * (1 - 2 / _BEATS)) if begun == self._begun else None

    def name(self, number: int) -> str:
        """The number of a process, and its host where that is known."""
        host = self._hosts.get(number)
        return f"process {number}{f' on {host}' if host else ''}"


def shutdown_timeout(timeout: float) -> float:
    """The seconds that a process which is done waits for the others to be done."""
    return max(300.0, timeout)


def _number(key: str) -> int:
    return int(key.rpartition("/")[2])


def end_now(status: Status, line: str) -> None:
    """Ends this process at once, whatever its threads do, after one line on stderr.

    Other threads may hang in code that no exception reaches. What the process has begun to write
    stays under its temporary name, as after a kill.
    """
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()
    with contextlib.suppress(OSError, ValueError):
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{show_cursor}vit-jax: error: {line}\n")
        sys.stderr.flush()
    os._exit(status)


_peers: Peers | None = None


def watch(timeout: float) -> None:
    """Starts to watch the other processes of `jax.distributed`, which is initialised."""
    global _peers
    from jax._src import distributed  # There is no public way to the store.

    state = distributed.global_state
    _peers = Peers(state.client, state.process_id, state.num_processes, timeout, end_now)
    _peers.start()
    # JAX's own handler, which was registered before and so comes after this one, waits for the
    # others. Until then this process goes on counting, and no longer minds who is silent.
    atexit.register(_peers.leave)


def name(process: int) -> str:
    """The number of a process, and its host where that is known."""
    return f"process {process}" if _peers is None else _peers.name(process)


def begin_step() -> None:
    """Counts a step that this process begins, for the others to see."""
    if _peers is not None:
        _peers.begin()


def waited_for() -> Waited | None:
    """Whether the others wait for this process; None if none has begun a step that it has not."""
    return None if _peers is None else _peers.waited_for()


def end_all(status: Status, line: str) -> None:
    """Ends this process as `end_now`, and tells the others why, so that they end too.

    Nothing is told of SIGTERM, which all processes know of and end for by themselves.
    """
    if _peers is not None and status != Status.PREEMPTED:
        # The store may be what hangs.
        telling = threading.Thread(target=_peers.leave, args=[line, status], daemon=True)
        telling.start()
        telling.join(_TELLING)
    end_now(status, line)


def stored(key: str) -> str | None:
    """What is stored at process 0 under a key; None if nothing is, or nobody answers."""
    from jax._src import distributed

    client: Any = distributed.global_state.client
    with contextlib.suppress(Exception):
        return client.key_value_try_get(key)
    return None


def said_by_first(key: str, say: Callable[[], str]) -> str:
    """What `say` returns in process 0, in every process; the others wait for it.

    Args:
      key: What it is about, a name that nothing else has in this run.
      say: Called in process 0, or where there are no others.
    """
    from jax._src import distributed

    state = distributed.global_state
    client: Any = state.client
    if client is None:
        return say()
    if state.process_id:
        # If process 0 ends in its place, the watch ends this one too.
        return client.blocking_key_value_get(key, 24 * 3600 * 1000)
    text = say()
    client.key_value_set(key, text)
    return text


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Tells the other processes when the block fails, so that they do not wait in vain.

    An error of the network may mean that another process is gone. Then this process waits until
    that process has been silent for long enough, and ends with the line that names it.
    """
    try:
        yield
    except (Preempted, KeyboardInterrupt) as end:  # The others end by themselves.
        if _peers is not None:
            _peers.leave(status=getattr(end, "status", Status.INTERRUPTED))
        raise
    except BaseException as error:
        if _peers is not None:
            text = " ".join(str(error).split())
            if _NETWORK.search(text):
                _peers.wait_for_verdict()
            status = getattr(error, "status", Status.FAILED)
            _peers.leave(text[:300] or type(error).__name__, status)
        raise


@contextlib.contextmanager
def behind_a_relay() -> Iterator[None]:
    """Makes JAX's client reach process 0 through a relay on this machine.

    When process 0 is killed, its connections close, upon which JAX's client ends the process
    without a word of ours. The relay keeps the client's end open.
    """
    from jax._src import distributed

    module = getattr(distributed, "_jax", None)
    connect = getattr(module, "get_distributed_runtime_client", None)
    if connect is None:  # Another version of JAX: its own ending is all there is.
        yield
        return

    def connect_to_relay(address: str, node_id: int, *args: Any, **options: Any) -> Any:
        # Process 0 has the other end in itself.
        return connect(relay(address) if node_id else address, node_id, *args, **options)

    with mock.patch.object(module, "get_distributed_runtime_client", connect_to_relay):
        yield

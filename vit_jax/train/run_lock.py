"""One run a workdir: a lock that says who holds it, and that a crash cannot leave behind.

The operating system's lock on `workdir/run.lock` decides on one machine, and on every file system
that shares its locks between machines: it goes with the process that holds it, whatever ends that.
Some shared file systems keep such locks to each machine, or have none. The file therefore holds a
note of its holder, who renews it every few seconds for as long as the run goes on: a note that
somebody else left there is watched for a while before it is taken for that of a dead run.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from vit_jax import stores
from vit_jax.errors import UserError

FILE = "run.lock"
BEAT = 10.0  # seconds between two signs of life
# Seconds without a sign of life after which a run is taken for dead. Clients of network file
# systems believe what they have seen of a file for up to a minute.
WATCH = 75.0
SETTLE = 2.0

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@contextlib.contextmanager
def run_lock(workdir: str | os.PathLike) -> Iterator[Callable[[], None]]:
    """Holds the lock of `workdir` while the block runs; the file stays, and is empty afterwards.

    The lock of an address is another one, see `lease.py`.

    Yields:
      A function that raises UserError if another run has taken the lock, which only that of an
      address allows.

    Raises:
      UserError: if another run holds the lock, with its host, process and start; or if the lock's
        file cannot be written.
    """
    if stores.is_address(workdir):
        from vit_jax.train.lease import lease

        with lease(os.fspath(workdir)) as require_mine:
            yield require_mine
        return
    path = pathlib.Path(workdir) / FILE
    with _opened(path) as file:
        trusted = _locked(file, path)
        _require_dead(path, trusted)
        me = this_run()
        _write(file, note(me, beat=0))
        if not trusted:
            # Two that start at once may both have found the file empty: the last note stays.
            time.sleep(SETTLE)
            holder = _read(path)
            if me.items() - holder.items():
                raise held(path.parent, holder)
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(path, me, ended), daemon=True)
        beating.start()
        try:
            yield lambda: None
        finally:
            ended.set()
            beating.join()
            with contextlib.suppress(OSError):
                file.truncate(0)


def holder(workdir: stores.Location) -> dict[str, Any]:
    """The note of the run that is at work in `workdir`, without taking the lock; empty for none.

    A run that was killed on another machine counts as at work for `WATCH` seconds.
    """
    file = stores.join(workdir, FILE)
    try:
        note, silent = parsed(stores.read_bytes(file)), time.time() - stores.modified(file)
    except OSError:
        return {}
    if silent > WATCH:
        return {}
    if note.get("host") == socket.gethostname() and not _alive(note.get("process")):
        return {}
    return note


def _alive(process: Any) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # It is there, and another user's.
    except (OSError, TypeError):
        return False
    return True


def _opened(path: pathlib.Path) -> IO[bytes]:
    """The file, open for reading and writing without a buffer, with what it held."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    except OSError as error:
        raise UserError(f"cannot write to --workdir={path.parent}: {error.strerror}") from error


def _locked(file: IO[bytes], path: pathlib.Path) -> bool:
    """Takes the operating system's lock; False where there is none to take.

    Raises UserError if another process has it.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise held(path.parent, _read_soon(path)) from error
        raise UserError(f"cannot lock {path}: {error.strerror}") from error
    return True


def _require_dead(path: pathlib.Path, trusted: bool) -> None:
    """Raises UserError if the run that left its note in the file is alive.

    Args:
      path: The lock's file.
      trusted: Whether the operating system would have refused the lock to a second process of this
        machine.
    """
    holder = _read(path)
    if not holder:
        return
    if not (trusted and holder.get("host") == socket.gethostname()):
        say(f"{path.parent} was left by {words(holder)}: watching it for {WATCH:.0f} s …")
        before, until = _pulse(path), time.monotonic() + WATCH
        while time.monotonic() < until:
            time.sleep(min(BEAT / 2, WATCH / 4))
            if _pulse(path) != before:
                raise held(path.parent, _read(path) or holder)
    say(f"{path.parent} was left by {words(holder)}, which has ended: this run takes over")


def held(workdir: str | os.PathLike, holder: dict[str, Any]) -> UserError:
    """The error of a run that finds another one in its workdir."""
    return UserError(
        f"--workdir={workdir} is in use by {words(holder)}; two runs in one folder would "
        "destroy each other's metrics and checkpoints. Wait for it to end, stop it, or use another "
        "--workdir"
    )


def words(holder: dict[str, Any]) -> str:
    """A run by its note, for people."""
    if not holder:
        return "another run, which has only just begun"
    return (
        f"the run of process {holder.get('process')} on {holder.get('host')}, begun at "
        f"{holder.get('begun')}"
    )


def this_run() -> dict[str, Any]:
    """What a note says of the run of this process."""
    begun = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "begun": begun}


def note(holder: dict[str, Any], beat: int) -> bytes:
    """The file's content, as long for every beat, so that it is overwritten and never cut off."""
    return json.dumps({**holder, "beat": f"{beat:09d}"}).encode() + b"\n"


def _write(file: IO[bytes], note: bytes) -> None:
    try:
        file.truncate(0)
        file.seek(0)
        file.write(note)
        os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {file.name}: {error.strerror}") from error


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The note in the file; empty where there is none, or none that can be read."""
    try:
        return parsed(path.read_bytes())
    except OSError:
        return {}


def _read_soon(path: pathlib.Path) -> dict[str, Any]:
    """The note of a run that has the lock, which may have taken it a moment ago."""
    until = time.monotonic() + SETTLE
    while not (holder := _read(path)) and time.monotonic() < until:
        time.sleep(0.05)
    return holder


def parsed(note: bytes) -> dict[str, Any]:
    """What a note says; nothing where it cannot be read."""
    try:
        holder = json.loads(note)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _pulse(path: pathlib.Path) -> tuple[int, bytes]:
    """What changes with every sign of life. The file is opened anew: that is when a network file
    system asks for news."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns, file.read()


def _beat(path: pathlib.Path, me: dict[str, Any], ended: threading.Event) -> None:
    """Shows that this run goes on, until it has ended."""
    beat = 0
    while not ended.wait(BEAT):
        beat += 1
        # The file is closed each time, for some file systems pass on what was written only then.
        # What goes wrong here, the run itself will meet and say.
        with contextlib.suppress(OSError), open(path, "r+b", buffering=0) as file:
            file.write(note(me, beat))


def say(text: str) -> None:
    """Says on stderr what is done about a lock."""
    print(text, file=sys.stderr, flush=True)

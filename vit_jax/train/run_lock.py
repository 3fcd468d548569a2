"""One run a workdir: a lock that says who holds it, and that a crash cannot leave behind.

The operating system's lock on `workdir/run.lock` decides on one machine, and on every file system
that shares its locks between machines: it goes with the process that holds it, whatever ends that.
Some shared file systems keep such locks to each machine, or have none. The file therefore holds a
note of its holder, who touches it every few seconds for as long as the run goes on: a note that
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
from collections.abc import Iterator
from typing import IO, Any

from vit_jax.errors import UserError

FILE = "run.lock"
BEAT = 10.0  # seconds between two signs of life
# Seconds without a sign of life after which a run is taken for dead. Clients of network file
# systems believe what they have seen of a file for up to a minute.
WATCH = 75.0
SETTLE = 2.0

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@contextlib.contextmanager
def run_lock(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the lock of `workdir` while the block runs; the file stays, and is empty afterwards.

    Raises:
      UserError: if another run holds the lock, with its host, process and start; or if the lock's
        file cannot be written.
    """
    path = pathlib.Path(workdir) / FILE
    with _opened(path) as file:
        trusted = _locked(file, path)
        _require_dead(path, trusted)
        _write(file, me := _me())
        if not trusted:
            # Two that start at once may both have found the file empty: the last note stays.
            time.sleep(SETTLE)
            if (holder := _read(path)) != me:
                raise _held(path, holder)
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(file, ended), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            with contextlib.suppress(OSError):
                file.truncate(0)


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
            raise _held(path, _read(path)) from error
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
        _say(f"{path.parent} was left by {_words(holder)}: watching it for {WATCH:.0f} s …")
        before, until = _pulse(path), time.monotonic() + WATCH
        while time.monotonic() < until:
            time.sleep(min(BEAT / 2, WATCH / 4))
            if _pulse(path) != before:
                raise _held(path, _read(path) or holder)
    _say(f"{path.parent} was left by {_words(holder)}, which has ended: this run takes over")


def _held(path: pathlib.Path, holder: dict[str, Any]) -> UserError:
    return UserError(
        f"--workdir={path.parent} is in use by {_words(holder)}; two runs in one folder would "
        "destroy each other's metrics and checkpoints. Wait for it to end, stop it, or use another "
        "--workdir"
    )


def _words(holder: dict[str, Any]) -> str:
    if not holder:
        return "another run, which has only just begun"
    return (
        f"the run of process {holder.get('process')} on {holder.get('host')}, begun at "
        f"{holder.get('begun')}"
    )


def _me() -> dict[str, Any]:
    begun = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "begun": begun}


def _write(file: IO[bytes], holder: dict[str, Any]) -> None:
    try:
        file.truncate(0)
        file.seek(0)
        file.write(json.dumps(holder).encode() + b"\n")
        os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {file.name}: {error.strerror}") from error


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The note in the file; empty where there is none, or none that can be read."""
    try:
        holder = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _pulse(path: pathlib.Path) -> tuple[int, bytes]:
    """What changes with every sign of life. The file is opened anew: that is when a network file
    system asks for news."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns, file.read()


def _beat(file: IO[bytes], ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # The run itself will meet what is wrong, and say it.
            os.utime(file.fileno())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

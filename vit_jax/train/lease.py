"""The lock of a run at an address: an object that only one run can create.

Stores create an object on the condition that there is none (`If-None-Match`, `ifGenerationMatch`),
so that of two runs that start at once one is refused. The object holds a note of the run, which
renews it every few seconds. A note that is not renewed for a while is that of a dead run: the next
one removes it and creates its own. A run that was suspended for so long, and taken for dead,
notices before it writes again that the note is another's.

How far this goes: between that look and the writing, a run that is suspended at that very moment
can still write over its successor. A store that ignores the condition, as some that imitate S3 do,
leaves the note alone to decide, which two runs that start within the same second can both pass.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.train import run_lock as notes

FILE = notes.FILE


@contextlib.contextmanager
def lease(workdir: str) -> Iterator[Callable[[], None]]:
    """Holds the lock of a run at an address while the block runs.

    Yields:
      A function that raises UserError if another run has taken the lock.

    Raises:
      UserError: if another run holds the lock, or the store cannot be written.
    """
    path = stores.path(stores.join(workdir, FILE))
    me = notes.this_run() | {"boot": _boot(), "id": uuid.uuid4().hex}
    with _errors(workdir):
        if not _create(path, me):
            _require_dead(workdir, path)
            stores.remove([path])
            if not _create(path, me):
                raise notes.held(workdir, _read(path))
            time.sleep(notes.SETTLE)  # another one that took over may have removed this note
        _require_mine(workdir, path, me)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, me, ended), daemon=True)
    beating.start()
    try:
        yield lambda: _require_mine(workdir, path, me)
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):
            if _is(me, _read(path)):
                stores.remove([path])


def _create(path: Any, me: dict[str, Any]) -> bool:
    """Whether the object was created; False if there is one."""
    with stores.as_os_errors():
        if path.exists():  # A store that ignores the condition would replace it.
            return False
        try:
            path.fs.pipe_file(path.path, notes.note(me, beat=0), mode="create")
        except Exception:
            # Each client says in its own way that there is one. One that asked a second time, after
            # an answer that was lost, is told of its own.
            if path.exists():
                return _is(me, _read(path))
            raise
    return True


def _require_dead(workdir: str, path: Any) -> None:
    """Raises UserError if the run whose note is there renews it."""
    before, holder = _content(path), _read(path)
    if not (holder and _has_ended(holder)):
        left_by = f"{workdir} was left by {notes.words(holder)}"
        notes.say(f"{left_by}: watching it for {notes.WATCH:.0f} s …")
        until = time.monotonic() + notes.WATCH
        while time.monotonic() < until:
            time.sleep(min(notes.BEAT / 2, notes.WATCH / 4))
            now = _content(path)
            if now is None:
                return  # it has ended in order
            if now != before:
                raise notes.held(workdir, _read(path) or holder)
    notes.say(f"{workdir} was left by {notes.words(holder)}, which has ended: this run takes over")


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, since it last started, and is gone."""
    if (holder.get("host"), holder.get("boot")) != (socket.gethostname(), _boot()):
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _boot() -> str:
    """What tells one start of this machine from another, and from those of other machines."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return "unknown"


def _require_mine(workdir: str, path: Any, me: dict[str, Any]) -> None:
    with _errors(workdir):
        holder = _read(path)
    if not _is(me, holder):
        raise notes.held(workdir, holder)


def _is(me: dict[str, Any], holder: dict[str, Any]) -> bool:
    return me.items() <= holder.items()


def _content(path: Any) -> bytes | None:
    # By one request: a file that is opened and then read fails if it is renewed in between.
    try:
        return stores.read_bytes(str(path))
    except FileNotFoundError:
        return None


def _read(path: Any) -> dict[str, Any]:
    return notes.parsed(_content(path) or b"")


def _beat(path: Any, me: dict[str, Any], ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(notes.BEAT):
        beat += 1
        with contextlib.suppress(OSError), stores.as_os_errors():
            if not _is(me, _read(path)):
                return  # taken by another run, as the next writing will say
            path.write_bytes(notes.note(me, beat))


@contextlib.contextmanager
def _errors(workdir: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to --workdir={workdir}: {error.strerror}") from error

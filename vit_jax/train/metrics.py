"""A run's numbers on disk: `metrics.jsonl`, with one line per report, and TensorBoard events."""

import contextlib
import glob
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping

from vit_jax import stores
from vit_jax.errors import UserError

_FILE = "metrics.jsonl"
EVALS = "evals"  # In its folders lie the metrics that `vit-jax eval --watch` makes of a run.
_FILES = itertools.count()


class MetricWriter:
    """Writes scalars into one workdir.

    An interrupted run may have written lines after its last checkpoint, that is, of steps after
    `first_step`. They are removed, so that no step is reported twice. `write` returns after it has
    handed the line to the operating system, so a killed process loses at most the line that it was
    writing.

    Raises:
      UserError: if the disk is full or a file is not writable; the methods raise it too.
    """

    def __init__(self, workdir: str | os.PathLike, first_step: int):
        self._where, folder = str(workdir), pathlib.Path(workdir)
        path = folder / _FILE
        try:
            _cut_back(path, first_step)
            self._file = path.open("a", encoding="utf-8")
            self._events = _Events(folder, first_step)
        except OSError as error:
            raise self._not_written(error) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the scalars of one step to both files."""
        try:
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._file.flush()
            self._events.write(step, scalars)
        except OSError as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Closes both files."""
        try:
            with contextlib.closing(self._events):
                self._file.close()
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> UserError:
        reason = error.strerror or error
        return UserError(f"cannot write the metrics of {self._where}: {reason}")


def read(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """Every complete line of a run's metrics in order, without a line that a kill has torn off.

    Raises:
      UserError: for a folder without readable metrics.
    """
    try:
        content = stores.read_bytes(stores.join(workdir, _FILE))
        return [line for _, line in _whole_lines(content)]
    except OSError as error:
        raise UserError(
            f"{workdir} is not the workdir of a run: no readable {_FILE} ({error.strerror})"
        ) from error


def read_all(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The lines of `read`, and after them those that `vit-jax eval --watch` made of the run.

    Raises:
      UserError: for a folder without readable metrics.
    """
    where = workdir if stores.is_address(workdir) else glob.escape(os.fspath(workdir))
    watched = stores.matching(stores.join(where, EVALS, "*", _FILE))
    folders = [workdir, *(file.rpartition("/")[0] for file in sorted(watched))]
    return [line for folder in folders for line in read(folder)]


def _cut_back(path: pathlib.Path, last_step: int) -> None:
    """Removes the lines after `last_step`; the file is replaced as a whole."""
    if not path.exists():
        return
    kept = [
        text + "\n" for text, line in _whole_lines(path.read_bytes()) if line["step"] <= last_step
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def _whole_lines(content: bytes) -> Iterator[tuple[str, dict[str, float]]]:
    """Each line as text and as parsed JSON, up to the first line that is broken off."""
    # Bytes of half a character are replaced, so that such a line fails to parse like any torn line.
    for text in content.decode("utf-8", errors="replace").splitlines():
        try:
            yield text, json.loads(text)
        except ValueError:
            return


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Lets no package import torch, which tensorboardX does wherever it is: that takes seconds."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # pyright: ignore
    try:
        yield
    finally:
        del sys.modules["torch"]


class _Events:
    """TensorBoard's event file, which every call writes to before it returns.

    `tensorboardX.SummaryWriter` is not used for two reasons. Its writing thread dies on a full
    disk, and the run then waits forever for space in the thread's queue. And a killed process
    loses up to two minutes of events.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int):
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore

        # The file's name contains the time in seconds. The process number is added so that two
        # runs started within the same second do not share a file, and a count because a run that
        # goes back to an earlier step begins another file.
        suffix = f".{os.getpid()}.{next(_FILES)}"
        self._file = EventsWriter(str(workdir / "events"), filename_suffix=suffix)
        # A session's start tells TensorBoard to drop what earlier files hold of later steps.
        self._write(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

        values = [Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        self._write(step, summary=Summary(value=values))

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, **what) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

        self._file.write_event(Event(wall_time=time.time(), step=step, **what))
        self._file.flush()

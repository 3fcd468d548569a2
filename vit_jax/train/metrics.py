"""Where a run's numbers go: `metrics.jsonl`, one line per logged step, and TensorBoard events."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping

from vit_jax.errors import UserError

_FILE = "metrics.jsonl"


class MetricWriter:
    """Writes scalars of one workdir.

    Lines after `first_step` are what an interrupted run wrote after its last checkpoint; they are
    cut off, so that no step stands twice. What is written is on the disk when `write` returns, as
    far as this process can tell: a kill loses nothing but a line that was being written.

    Raises:
      UserError: when the disk is full or the file not writable.
    """

    def __init__(self, workdir: str | os.PathLike, first_step: int):
        self._workdir = pathlib.Path(workdir)
        path = self._workdir / _FILE
        try:
            _cut_back(path, first_step)
            self._file = path.open("a", encoding="utf-8")
            self._events = _Events(self._workdir, first_step)
        except OSError as error:
            raise self._not_written(error) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        try:
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._file.flush()
            self._events.write(step, scalars)
        except OSError as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        try:
            with contextlib.closing(self._events):
                self._file.close()
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> UserError:
        reason = error.strerror or error
        return UserError(f"cannot write the metrics of {self._workdir}: {reason}")


def read(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """Every whole line of a run, in order; what was being written when it was killed is not one.

    Raises:
      UserError: for a folder without metrics.
    """
    path = pathlib.Path(workdir) / _FILE
    try:
        return [line for _, line in _whole_lines(path)]
    except OSError as error:
        raise UserError(
            f"{workdir} is not the workdir of a run: no readable {_FILE} ({error.strerror})"
        ) from error


def _cut_back(path: pathlib.Path, last_step: int) -> None:
    """Keeps the lines up to `last_step`; the file is replaced as a whole."""
    if not path.exists():
        return
    kept = [text + "\n" for text, line in _whole_lines(path) if line["step"] <= last_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def _whole_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Each line as text and parsed, up to the first that is broken off."""
    # A line torn within a character is as broken as any other.
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield text, json.loads(text)
        except ValueError:
            return


class _Events:
    """TensorBoard's event file, written within the call.

    Not `tensorboardX.SummaryWriter`: its writing thread dies on a full disk, and the run then
    hangs on the thread's full queue; and a kill loses up to two minutes of events.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore

        # The name holds the second; a run started twice within one must not share the file.
        self._file = EventsWriter(str(workdir / "events"), filename_suffix=f".{os.getpid()}")
        # TensorBoard drops what earlier files hold of this step and those after it.
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

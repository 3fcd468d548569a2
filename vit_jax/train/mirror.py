"""A run at an address: a local folder that takes its place, and is brought to the store.

A run appends to its metrics, renames what it has written and lets Orbax fill folders, none of which
an object store can do. It therefore works in a local folder, as any run does, and a thread copies
what is new there to the store: small files as a whole, checkpoints one by one. The file that Orbax
writes last into a checkpoint is copied last and removed first, so that whoever finds it finds a
whole checkpoint. Metrics are copied before the checkpoint that follows them, so that a run that is
killed loses nothing that it does not make again.

What must be there for a run to go on is fetched when it starts. The arrays of old checkpoints stay
in the store alone.
"""

import contextlib
import logging
import os
import pathlib
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

from vit_jax import stores
from vit_jax.checkpoint.files.orbax import STEP_FILE
from vit_jax.errors import UserError

log = logging.getLogger(__name__)

EVERY = 15.0  # seconds between two copies; a store takes a change of one file a second
_STEP = re.compile(r"checkpoint_(\d+)")
_ARRAYS = ("params", "rest")  # folders of a checkpoint without which Orbax knows its steps
# Not fetched at the start of a run, which writes new files of these.
_LEFT_THERE = re.compile(r"events\.out\..*|run\.lock|\..*")
_UNFINISHED = re.compile(r"\..*|.*\.tmp|run\.lock")

Stamp = tuple[int, int]  # size in bytes and time of the last change, of a local file


class Mirror(os.PathLike[str]):
    """The local folder of a run at an address. As a path it is the folder, as text the address.

    This is a context manager; leaving it copies what is new and removes the folder.

    Args:
      address: Where the run lies.
      writes_checkpoints: Whether this process copies checkpoints. Each process of a run has such a
        folder; the first has the arrays of new checkpoints, and copies them.
      require_mine: Raises UserError if another run has taken over the address.

    Raises:
      UserError: if the store cannot be read; later, if it cannot be written.
    """

    def __init__(
        self,
        address: str,
        writes_checkpoints: bool = True,
        require_mine: Callable[[], None] = lambda: None,
    ):
        self.address = address.rstrip("/")
        self._root = stores.path(self.address)
        self._writes, self._require_mine = writes_checkpoints, require_mine
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="vit_jax_run_"))
        self._sent: dict[str, Stamp] = {}  # what the store has of the local files
        self._steps: dict[str, Stamp] = {}  # checkpoints that the store has, by their last files
        self._copying, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __fspath__(self) -> str:
        return str(self._folder)

    def __str__(self) -> str:
        return self.address

    def __enter__(self) -> Self:
        try:
            self._fetch()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self.push()
        except UserError as error:
            if kind is None:
                raise
            log.warning("%s", error)  # the run has ended for a reason of its own
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def push(self) -> None:
        """Copies what is new to the store, and returns when it is there.

        Raises:
          UserError: if the store cannot be written, or another run has taken over the address.
        """
        self._require_mine()
        with self._copying, self._errors("write to"):
            steps = self._local_steps()  # first, so that the metrics up to them go before them
            for name, stamp in self._local_files():
                if self._sent.get(name) != stamp:
                    with contextlib.suppress(FileNotFoundError):  # it was replaced meanwhile
                        stores.upload([self._folder / name], [self._root / name])
                    self._sent[name] = stamp
            if self._writes:
                self._push_steps(steps)
            for step in sorted(steps, key=_number)[:-1]:
                if step in self._steps:
                    _drop_arrays(self._folder / step)

    def fill(self, step: int) -> None:
        """Fetches the arrays of a checkpoint that the local folder lacks.

        Raises:
          UserError: if the store cannot be read.
        """
        name = f"checkpoint_{step}"
        if not self._writes:
            _drop_arrays(self._folder / name)
        with self._copying, self._errors("read"):
            self._get([f"{name}/{file}" for file in stores.files_below(self._root / name)])

    def _repeat(self) -> None:
        while not self._ended.wait(EVERY):
            # What fails here is tried again, and is an error when the run next asks for it.
            with contextlib.suppress(UserError):
                self.push()

    def _fetch(self) -> None:
        """Fetches what a run needs to go on; half-written checkpoints are removed."""
        with self._errors("read"):
            found = stores.files_below(self._root)
            tops = {name.partition("/")[0] for name in found}
            whole = {top for top in tops if f"{top}/{STEP_FILE}" in found}
            wanted, broken = [], []
            for name in found:
                top, _, inside = name.partition("/")
                if not inside and not _LEFT_THERE.fullmatch(top):
                    wanted.append(name)
                elif inside and _STEP.fullmatch(top):
                    if top not in whole:
                        broken.append(self._root / name)
                    elif inside.partition("/")[0] not in _ARRAYS:
                        wanted.append(name)
            self._get(wanted)
        self._steps = self._local_steps()
        self._sent = dict(self._local_files())
        if self._writes:
            with self._errors("write to"):
                stores.remove(broken)

    def _get(self, names: list[str]) -> None:
        missing = [name for name in names if not (self._folder / name).exists()]
        stores.download(
            [self._root / name for name in missing], [self._folder / name for name in missing]
        )

    def _push_steps(self, steps: dict[str, Stamp]) -> None:
        for step in sorted(self._steps, key=_number):
            if steps.get(step) != self._steps[step]:
                self._remove(step)
        for step in sorted(steps.keys() - self._steps.keys(), key=_number):
            folder = self._folder / step
            last = folder / STEP_FILE
            files = [f for f in folder.rglob("*") if f.is_file() and f != last]
            stores.upload(files, [self._root / f.relative_to(self._folder) for f in files])
            stores.upload([last], [self._root / step / STEP_FILE])
            self._steps[step] = steps[step]
            self._sent |= {
                name: stamp for name, stamp in self._local_files() if name.startswith(f"{step}/")
            }

    def _remove(self, step: str) -> None:
        stores.remove([self._root / step / STEP_FILE])
        stores.remove([self._root / step], recursive=True)
        del self._steps[step]

    def _local_steps(self) -> dict[str, Stamp]:
        """The whole checkpoints of the folder. Orbax renames a folder when it is whole."""
        found = {}
        for folder in self._folder.iterdir():
            if _STEP.fullmatch(folder.name):
                with contextlib.suppress(FileNotFoundError):
                    found[folder.name] = _stamp(folder / STEP_FILE)
        return found

    def _local_files(self) -> Iterator[tuple[str, Stamp]]:
        """All files but those that are still being written.

        Of a checkpoint they are those without arrays, which change when it gets its figures later,
        and only if the store has it.
        """
        for folder, subfolders, files in os.walk(self._folder):
            here = pathlib.Path(folder)
            if here == self._folder:
                subfolders[:] = [n for n in subfolders if self._has(n) or not _is_step(n)]
            elif here.parent == self._folder and here.name in self._steps:
                files.remove(STEP_FILE)
                subfolders[:] = [n for n in subfolders if n not in _ARRAYS and ".orbax-" not in n]
            for name in files:
                if not _UNFINISHED.fullmatch(name):
                    with contextlib.suppress(FileNotFoundError):
                        yield str((here / name).relative_to(self._folder)), _stamp(here / name)

    def _has(self, step: str) -> bool:
        """Whether the store has this very checkpoint, and this process copies checkpoints."""
        return self._writes and self._steps.get(step) == self._local_steps().get(step, ())

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            good = max(map(_number, self._steps), default=None)
            intact = "" if good is None else f". The checkpoint of step {good} is whole there"
            raise UserError(
                f"cannot {what} --workdir={self.address}: {error.strerror or error}{intact}; once "
                "this is mended, the same command goes on"
            ) from error


def mirror_of(workdir: Any) -> Mirror | None:
    """The mirror that a workdir is; None for a folder."""
    return workdir if isinstance(workdir, Mirror) else None


@contextlib.contextmanager
def skeleton(workdir: stores.Location, step: int | None = None) -> Iterator[str]:
    """A folder in which Orbax sees the checkpoints of a run, wherever it lies.

    Args:
      workdir: The folder of a run, or its address.
      step: The checkpoint whose arrays are there too; None for no arrays.

    Raises:
      UserError: if the store cannot be read.
    """
    if not stores.is_address(workdir):
        yield os.fspath(workdir)
        return
    mirror = Mirror(str(workdir), writes_checkpoints=False)
    try:
        mirror._fetch()
        if step is not None:
            mirror.fill(step)
        yield os.fspath(mirror)
    finally:
        shutil.rmtree(mirror, ignore_errors=True)


def _is_step(name: str) -> bool:
    """Whether a folder is a checkpoint, whole or not."""
    return name.startswith("checkpoint_")


def _number(step: str) -> int:
    return int(step.rpartition("_")[2])


def _stamp(file: pathlib.Path) -> Stamp:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _drop_arrays(folder: pathlib.Path) -> None:
    for item in _ARRAYS:
        shutil.rmtree(folder / item, ignore_errors=True)

"""Saying on stderr what is waited for."""

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False, width: int | None = None) -> "Console":
    """A console of rich's that is a terminal where its stream is one.

    Rich takes any stream for a terminal where FORCE_COLOR is set, as it is in notebooks and many CI
    systems: a log would be full of bars, and tables as narrow as a terminal.
    """
    import rich.console

    stream = sys.stderr if stderr else sys.stdout
    return rich.console.Console(
        stderr=stderr, width=width, force_terminal=stream.isatty(), force_jupyter=False
    )


@contextlib.contextmanager
def waiting(what: str, folders: Sequence[str | os.PathLike] = ()) -> Iterator[None]:
    """Shows what is waited for while the block runs, and how long it took.

    A terminal shows a clock, and the number of bytes by which the folders have grown; elsewhere
    there is a line at the start and one at the end.

    Args:
      what: What is done, such as "preparing the dataset 'digits'".
      folders: Where files are written meanwhile; they need not exist yet.
    """
    began = time.monotonic()
    with _clock(what, folders) if sys.stderr.isatty() else _line(what):
        yield
    print(f"{what}: done in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _line(what: str) -> Iterator[None]:
    print(f"{what} …", file=sys.stderr, flush=True)
    yield


@contextlib.contextmanager
def _clock(what: str, folders: Sequence[str | os.PathLike]) -> Iterator[None]:
    from rich import progress
    from rich.text import Text

    before = _size(folders)

    class Written(progress.ProgressColumn):
        max_refresh = 1.0  # seconds between two looks at the folders

        def render(self, task: Any) -> Text:
            grown = _size(folders) - before
            return Text(f"{grown / 1e6:,.0f} MB written" if grown > 0 else "")

    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeElapsedColumn(),
        Written(),
    )
    with progress.Progress(*columns, console=console(stderr=True), transient=True) as bar:
        bar.add_task(what, total=None)
        yield


def _size(folders: Sequence[str | os.PathLike]) -> int:
    """Bytes of all files below the folders; files that vanish meanwhile do not count."""
    total = 0
    for folder in folders:
        for file in pathlib.Path(folder).rglob("*"):
            with contextlib.suppress(OSError):
                total += file.stat().st_size
    return total

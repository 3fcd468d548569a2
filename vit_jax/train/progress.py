"""What a run shows while it goes: a live bar on a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds between plain lines, where there is no terminal to redraw.
_QUIET = 10.0


class RunProgress:
    """A bar with loss, accuracy, images/s and the time left. A context manager."""

    def __init__(self, total_steps: int, first_step: int, console: Console | None = None):
        self._console = console or Console()
        self._total = total_steps
        self._start, self._first = time.monotonic(), first_step
        self._last_line = 0.0
        self._values: dict[str, Any] = {"loss": "-", "accuracy": "-", "speed": "-"}
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss [cyan]{task.fields[loss]}"),
            TextColumn("top-1 [green]{task.fields[accuracy]}"),
            TextColumn("[magenta]{task.fields[speed]}[/] images/s"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=first_step, **self._values)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *exc_info):
        self._bar.stop()

    def update(self, step: int, **values: Any) -> None:
        """`loss`, `accuracy` (0 to 1) and `speed` (images/s): those given change."""
        formats = {"loss": "{:.4f}", "accuracy": "{:.2%}", "speed": "{:,.0f}"}
        self._values |= {name: formats[name].format(value) for name, value in values.items()}
        self._bar.update(self._task, completed=step, **self._values)
        if not self._console.is_terminal:
            self._line(step, important="accuracy" in values)

    def _line(self, step: int, important: bool) -> None:
        now = time.monotonic()
        if not important and now - self._last_line < _QUIET:
            return
        self._last_line = now
        done = max(step - self._first, 1)
        left = (now - self._start) / done * (self._total - step)
        v = self._values
        self._console.print(
            f"step {step}/{self._total}  loss {v['loss']}  top-1 {v['accuracy']}  "
            f"{v['speed']} images/s  ETA {left:.0f} s",
            highlight=False,
        )

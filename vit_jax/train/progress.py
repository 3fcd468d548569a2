"""What a run shows while it goes: a live bar on a terminal, plain lines elsewhere."""

import datetime
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

# Seconds between plain lines, where there is no terminal to redraw.
_QUIET = 10.0


class RunProgress:
    """A bar with loss, accuracy, speed and the time left. A context manager.

    Leaving it, also by an interrupt or an error, leaves the last state of the bar on the terminal
    and gives the cursor back.
    """

    def __init__(self, total_steps: int, first_step: int, console: Console | None = None):
        self._console = console or Console()
        self._total = total_steps
        self._step = first_step
        self._began: tuple[float, int] | None = None  # when, and after which step
        self._last_line = -_QUIET
        self._figures: dict[str, tuple[str, str]] = {}  # in the order of the first `update`
        self._bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Figures(table_column=Column(no_wrap=True)),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=first_step, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        accuracy: float | None = None,
        speed: float | None = None,
        utilisation: float | None = None,
        memory: tuple[int, int] | None = None,
    ) -> None:
        """Shows the figures that are given, and keeps those that are not.

        Args:
          step: Steps done.
          accuracy: Top-1 of the last evaluation, 0 to 1.
          speed: Images per second, over all devices.
          utilisation: Model FLOPs as a share of the devices' peak, 0 to 1.
          memory: Bytes of the first device: the most in use so far, and all there are.
        """
        now = time.monotonic()
        # The first update comes after the compilation, which would spoil the estimate.
        self._began = self._began or (now, step)
        self._step = step
        if loss is not None:
            self._figures["loss"] = ("loss", f"{loss:.4f}")
        if accuracy is not None:
            self._figures["accuracy"] = ("top-1", f"{accuracy:.2%}")
        if speed is not None:
            self._figures["speed"] = ("images/s", f"{speed:,.0f}")
        if utilisation is not None:
            self._figures["utilisation"] = ("MFU", f"{utilisation:.1%}")
        if memory is not None:
            used, limit = (x / 2**30 for x in memory)
            self._figures["memory"] = ("memory", f"{used:.1f}/{limit:.1f} GiB")
        self._figures.pop("left", None)  # stands last
        self._figures["left"] = ("ETA", self._time_left(now))
        self._bar.update(self._task, completed=step, figures=self._figures)
        if not self._console.is_terminal:
            self._line(now, important=accuracy is not None)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _time_left(self, now: float) -> str:
        began, after = self._began or (now, self._step)
        if self._step == after:
            return "-" if self._step < self._total else "0:00:00"
        seconds = (now - began) / (self._step - after) * (self._total - self._step)
        return str(datetime.timedelta(seconds=round(seconds)))

    def _line(self, now: float, important: bool) -> None:
        if not important and now - self._last_line < _QUIET:
            return
        self._last_line = now
        figures = "  ".join(f"{name} {value}" for name, value in self._figures.values())
        # A log file has no right edge to fold at.
        self._console.print(
            f"step {self._step}/{self._total}  {figures}", highlight=False, soft_wrap=True
        )


_COLOURS = {"loss": "cyan", "accuracy": "green", "speed": "magenta", "utilisation": "yellow"}


class _Figures(ProgressColumn):
    """Names and values, as many as there are."""

    def render(self, task: Task) -> Text:
        text = Text()
        for key, (name, value) in dict(task.fields["figures"] or {}).items():
            text.append(f"{'  ' if text else ''}{name} ")
            text.append(value, style=_COLOURS.get(key, ""))
        return text

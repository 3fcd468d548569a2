"""The progress of a run: a live bar on a terminal, and plain lines in a file or a pipe."""

import datetime
import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from vit_jax import waiting

# The least number of seconds between plain lines, which are printed without a terminal.
_QUIET = 10.0


class RunProgress:
    """A context manager that shows a bar with loss, accuracy, speed and the remaining time.

    When the context ends, also by an interrupt or an error, the last state of the bar stays on the
    terminal and the cursor is visible again.
    """

    def __init__(self, total_steps: int, first_step: int, console: Console | None = None):
        self._console = console or waiting.console()
        self._total = total_steps
        self._step = first_step
        self._began: tuple[float, int] | None = None  # Time and step when the first step was done.
        self._last_line = -_QUIET
        self._figures: dict[str, tuple[str, str]] = {}  # In the order in which they first came.
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

    def start(self, step: int) -> None:
        """Estimates the remaining time from now on, when `step` steps are done.

        To be called after the first step: its compilation would spoil the estimate.
        """
        self._began = time.monotonic(), step

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        speed: float | None = None,
        utilisation: float | None = None,
        memory: tuple[int, int] | None = None,
    ) -> None:
        """Shows figures of training; figures that are None keep the value shown before.

        Without a terminal this is a line, but no more than one in ten seconds until the last step.

        Args:
          step: The number of steps done.
          loss: The training loss.
          speed: Images per second over all devices.
          utilisation: Model FLOPs as a share of the devices' peak, 0 to 1.
          memory: The peak of used bytes and the capacity in bytes of the first device.
        """
        if loss is not None:
            self._figures["loss"] = ("loss", f"{loss:.4f}")
        if speed is not None:
            self._figures["speed"] = ("images/s", f"{speed:,.0f}")
        if utilisation is not None:
            self._figures["utilisation"] = ("MFU", f"{utilisation:.1%}")
        if memory is not None:
            used, limit = (x / 2**30 for x in memory)
            self._figures["memory"] = ("memory", f"{used:.1f}/{limit:.1f} GiB")
        self._show(step)
        now = time.monotonic()
        due = now - self._last_line >= _QUIET or step >= self._total
        if due and not self._console.is_terminal:
            self._last_line = now
            self._line(self._figures)

    def evaluated(self, step: int, name: str, figures: Mapping[str, float]) -> None:
        """Shows the accuracy and the loss of an evaluation: a line where there is no terminal.

        Args:
          step: The number of steps done.
          name: The name of the evaluation.
          figures: Its figures. Names with 'accuracy' are shares of 0 to 1; the first is shown.
        """
        shown = {}
        for kind, what, form in (
            ("loss", "loss", ".4f"),
            ("accuracy", "top-1", ".2%"),
            ("@1", "recall@1", ".2%"),
        ):
            if found := [value for key, value in figures.items() if kind in key]:
                shown[kind] = what, format(found[0], form)
        if not self._console.is_terminal:
            self._step = step
            self._line({"what": (f"{name}:", ""), **shown})
        elif "accuracy" in shown:
            what, value = shown["accuracy"]
            own = name == "test"
            self._figures["accuracy" if own else name] = (what if own else name, value)
            self._show(step)

    def say(self, text: str) -> None:
        """Prints one line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _show(self, step: int) -> None:
        self._step = step
        self._figures.pop("left", None)  # The remaining time is always shown last.
        if (left := self._time_left()) is not None:
            self._figures["left"] = ("ETA", left)
        self._bar.update(self._task, completed=step, figures=self._figures)

    def _time_left(self) -> str | None:
        """The remaining time as H:MM:SS; None while there is nothing to estimate it from."""
        if self._step >= self._total:
            return "0:00:00"
        if self._began is None or self._step <= self._began[1]:
            return None
        began, after = self._began
        seconds = (time.monotonic() - began) / (self._step - after) * (self._total - self._step)
        return str(datetime.timedelta(seconds=round(seconds)))

    def _line(self, shown: Mapping[str, tuple[str, str]]) -> None:
        figures = "  ".join(f"{name} {value}".rstrip() for name, value in shown.values())
        # `soft_wrap` keeps the line whole: a log file has no width to fold lines at.
        self._console.print(
            f"step {self._step}/{self._total}  {figures}", highlight=False, soft_wrap=True
        )


_COLOURS = {"loss": "cyan", "accuracy": "green", "speed": "magenta", "utilisation": "yellow"}


class _Figures(ProgressColumn):
    """A column of the bar that shows the names and values of all figures."""

    def render(self, task: Task) -> Text:
        text = Text()
        for key, (name, value) in dict(task.fields["figures"] or {}).items():
            text.append(f"{'  ' if text else ''}{name} ")
            text.append(value, style=_COLOURS.get(key, ""))
        return text

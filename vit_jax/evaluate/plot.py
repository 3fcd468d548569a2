"""Draws the figures of runs over their steps: loss, accuracy, learning rate, norms, times."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.checkpoint.files.archive import replacing
from vit_jax.errors import UserError
from vit_jax.train import metrics

FORMATS = (".png", ".svg")

# Okabe and Ito's colours, which readers with any colour vision tell apart; black comes last.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY, _LIGHT = "#555555", "#dddddd"
# A curve of more points than this is drawn faintly, with its moving mean on top.
_NOISY = 200
# How opaque the curves of `config.evals` are beside those of the test split.
_FAINT = 0.6
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LIGHT,
    "grid.linewidth": 0.8,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    # A fixed salt makes the same run give the same file.
    "svg.hashsalt": "vit-jax",
}

# The steps at which `metrics.jsonl` reports a figure, and the figure's values.
Series = tuple[np.ndarray, np.ndarray]


def plot(workdirs: Sequence[str | os.PathLike], out: str | os.PathLike) -> None:
    """Draws one or more runs into one file, which appears whole or not at all.

    Raises:
      UserError: for a folder without metrics, a suffix that is neither .png nor .svg, a place
        where nothing can be written, or Matplotlib missing.
    """
    out = pathlib.Path(out)
    if out.suffix not in FORMATS:
        raise UserError(f"cannot draw into {str(out)!r}: expected a file name in .png or .svg")
    runs = {name: _run(workdir) for name, workdir in zip(names(workdirs), workdirs, strict=True)}
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        save_figure(_figure(runs), out)


def names(workdirs: Sequence[str | os.PathLike]) -> list[str]:
    """A name for each run: the shortest end of its path that differs from those of the others.

    Raises:
      UserError: if the same run is given twice.
    """
    paths = [
        pathlib.Path(workdir if stores.is_address(workdir) else os.path.abspath(workdir))
        for workdir in workdirs
    ]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"the run {str(twice)!r} is given twice")
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        short = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]


def series(lines: Sequence[dict[str, float]], figure: str) -> Series:
    """The steps and values of the lines that report `figure`."""
    having = [line for line in lines if figure in line]
    return np.array([line["step"] for line in having]), np.array([line[figure] for line in having])


def smoothed(values: np.ndarray) -> np.ndarray:
    """The moving mean of each value over the nearest fiftieth of all values, fewer at the ends."""
    half = max(len(values) // 100, 1)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    places = np.arange(len(values))
    first = np.maximum(places - half, 0)
    last = np.minimum(places + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _run(workdir: str | os.PathLike) -> list[dict[str, float]]:
    lines = metrics.read_all(workdir)
    if not lines:
        raise UserError(f"the run {os.fspath(workdir)!r} has not logged anything yet")
    return lines


def require_matplotlib() -> None:
    """Raises UserError where Matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError('plots need Matplotlib: pip install "vit-jax[plot]"') from error


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A panel of the rows below: a title, the figure that is drawn, and one that is dotted."""

    title: str
    figure: str
    dotted: str = ""
    log: bool = False


# A panel of which no run reports anything is left out.
_PANELS = (
    _Panel("Gradient norm", "grad_norm", log=True),
    _Panel("Update norm (dotted: of the parameters)", "update_norm", "param_norm", log=True),
    _Panel("Seconds a step (dotted: waiting for data)", "step_seconds", "data_wait_seconds"),
    _Panel("FLOP utilisation", "mfu"),
    _Panel("Peak memory, GiB", "peak_memory_gib"),
    _Panel("Seconds of an evaluation (dotted: a save)", "eval_seconds", "save_seconds"),
    _Panel("Skipped updates (dotted: rollbacks)", "skipped_updates", "rollbacks"),
)


def _figure(runs: dict[str, list[dict[str, float]]]):
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and may want a display

    reported = {name for lines in runs.values() for line in lines for name in line}
    panels = [panel for panel in _PANELS if {panel.figure, panel.dotted} & reported]
    rows = 1 + -(-len(panels) // 3)
    figure = Figure(figsize=(13, 4 * rows), layout="constrained")
    (loss, accuracy, rate), *below = figure.subplots(rows, 3, sharex=True, squeeze=False)
    below = [axes for row in below for axes in row]
    for place, (name, lines) in enumerate(runs.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        # When all colours are used, dashes tell the runs apart.
        dashes = ("-", "--", ":", "-.")[place // len(_COLOURS) % 4]
        _noisy(loss, series(lines, "train_loss"), color=colour, linestyle=dashes, label=name)
        _marked(loss, series(lines, "loss_test"), color=colour, linestyle=":")
        for one in _of_evaluations(lines, "loss"):
            _marked(loss, series(lines, one), color=colour, linestyle=":", alpha=_FAINT)
            _name_last(loss, series(lines, one), one, colour)
        percent = _percent(series(lines, "accuracy_test"))
        _marked(accuracy, percent, color=colour, linestyle=dashes)
        _name_best(accuracy, percent, colour)
        for one in _of_evaluations(lines, "accuracy"):
            percent = _percent(series(lines, one))
            _marked(accuracy, percent, color=colour, linestyle=dashes, alpha=_FAINT)
            _name_last(accuracy, percent, one, colour)
        _curve(rate, series(lines, "lr"), color=colour, linestyle=dashes)
        for axes, panel in zip(below, panels, strict=False):
            _noisy(axes, series(lines, panel.figure), color=colour, linestyle=dashes)
            _marked(axes, series(lines, panel.dotted), color=colour, linestyle=":")
    _finish(loss, "Loss", kinds=True)
    only_test = not any(_of_evaluations(lines, "accuracy") for lines in runs.values())
    _finish(accuracy, f"Top-1 accuracy{' on test' * only_test}, %")
    _within_percent(accuracy)
    _finish(rate, "Learning rate")
    rate.set_ylim(bottom=0)
    for axes, panel in zip(below, panels, strict=False):
        _finish(axes, panel.title)
        if panel.log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    for axes in below[len(panels) :]:
        axes.set_visible(False)
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)), x=0.01, ha="left", color=_GREY)
    else:
        figure.legend(loc="outside upper left", ncols=min(len(runs), 6))
    return figure


def _percent(points: Series) -> Series:
    return points[0], 100 * points[1]


def _within_percent(axes) -> None:
    """Ends the axis of an accuracy at 0 and 100 %, with room for markers that lie on these ends."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 100))
    for line in axes.lines:
        line.set_clip_on(False)


def _noisy(axes, points: Series, *, label: str | None = None, **style) -> None:
    steps, values = points
    if len(steps) > _NOISY and np.isfinite(values).all():
        axes.plot(steps, values, alpha=0.2, linewidth=0.8, **style)
        values = smoothed(values)
    _curve(axes, (steps, values), label=label, **style)


def _marked(axes, points: Series, **style) -> None:
    """Draws a curve, with a marker at every point if it has at most 50 points."""
    _curve(axes, points, most_marked=50, **style)


def _curve(axes, points: Series, most_marked: int = 1, **style) -> None:
    """Draws a curve; a single point would not be seen without a marker."""
    marker = "o" if len(points[0]) <= most_marked else None
    axes.plot(*points, **style, marker=marker, markersize=3.5)


def _name_best(axes, points: Series, colour: str) -> None:
    steps, values = points
    if not np.isfinite(values).any():
        return
    best = int(np.nanargmax(values))
    axes.annotate(
        f"{values[best]:.2f}",
        (steps[best], values[best]),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color=colour,
        fontsize=9,
    )


def _of_evaluations(lines: Sequence[dict[str, float]], figure: str) -> list[str]:
    """The names 'NAME/FIGURE' that the evaluations of `config.evals` report, in their order."""
    return sorted({name for line in lines for name in line if name.endswith(f"/{figure}")})


def _name_last(axes, points: Series, figure: str, colour: str) -> None:
    """Writes the evaluation's name at the end of its curve."""
    steps, values = points
    if not np.isfinite(values[-1]):
        return
    axes.annotate(
        figure.rpartition("/")[0],
        (steps[-1], values[-1]),
        xytext=(0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=colour,
        fontsize=8,
    )


def _finish(axes, title: str, kinds: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, pad=16)  # a figure that is named at the upper end fits below it
    axes.set_xlabel("step")
    # Panels that share their steps say them in the lowest row only, which need not be full.
    axes.tick_params(axis="x", labelbottom=True)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(_steps)
    axes.margins(x=0.02)
    if kinds and any(line.get_linestyle() == ":" and len(line.get_xdata()) for line in axes.lines):
        from matplotlib.lines import Line2D

        axes.legend(
            handles=[
                Line2D([], [], color=_GREY, label="train"),
                Line2D(
                    [], [], color=_GREY, label="test", linestyle=":", marker="o", markersize=3.5
                ),
            ],
            loc="upper right",
        )


def _steps(step: float, position: int | None = None) -> str:
    """A short label for a tick, such as 10k for 10000, so that labels do not overlap."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(step) >= size:
            return f"{step / size:g}{unit}"
    return f"{step:g}"


def save_figure(figure: Any, out: pathlib.Path) -> None:
    """Writes a Matplotlib figure in the format of the file's suffix, whole or not at all.

    Raises:
      UserError: if the file cannot be written.
    """
    # A date in the file would make two files of the same run differ.
    metadata = {"Date": None} if out.suffix == ".svg" else {}
    with replacing(out) as file:
        figure.savefig(file, format=out.suffix[1:], dpi=150, metadata=metadata)

"""Draws a plan: the cycles and the traffic of each class of operations."""

import os
import pathlib

from vit_jax.errors import UserError
from vit_jax.evaluate.plot import save_figure
from vit_jax.plan import report
from vit_jax.plan.report import Plan
from vit_jax.plan.traffic import Work

FORMATS = (".png", ".svg")

_CYCLES, _TRAFFIC, _GREY = "#0072B2", "#D55E00", "#555555"


def check(path: str | os.PathLike) -> None:
    """Checks that a chart can be written, before minutes of compiling.

    Raises:
      UserError: for a format other than .png and .svg, a missing directory, or without Matplotlib.
    """
    path = pathlib.Path(path)
    if path.suffix not in FORMATS:
        raise UserError(f"cannot draw into {str(path)!r}: expected a file name in .png or .svg")
    if not path.parent.is_dir():
        raise UserError(f"--chart: no directory {str(path.parent)!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError('charts need Matplotlib: pip install "vit-jax[plot]"') from error


def draw(plan: Plan, path: str | os.PathLike) -> None:
    """Draws bars for each class of operations into one file, which appears whole or not at all."""
    import matplotlib
    from matplotlib.figure import Figure

    path = pathlib.Path(path)
    with matplotlib.rc_context({"svg.hashsalt": "vit-jax", "font.size": 10}):
        # The most expensive class is the top bar, as it is the first row of the table.
        works = [item for item in plan.traffic.most_expensive()[::-1] if any(_figures(item[1]))]
        panels = _panels(plan, [work for _, work in works])
        figure = Figure(figsize=(11, 1.9 + 0.42 * len(works)), layout="constrained")
        rows = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        for axes, (title, values, colour) in zip(rows[0], panels, strict=True):
            _bars(axes, [name for name, _ in works], values, colour, title)
        figure.suptitle(_title(plan), x=0.01, ha="left", fontsize=11)
        save_figure(figure, path)


def _figures(work: Work) -> tuple[int, int]:
    return work.cycles, work.hbm_bytes


def _panels(plan: Plan, works: list[Work]) -> list[tuple[str, list[float], str]]:
    """Title, values and colour of each panel; cycles are left out if none are estimated."""
    traffic = ("HBM traffic of a device, GB a step", [w.hbm_bytes / 1e9 for w in works], _TRAFFIC)
    if not plan.traffic.cycles:
        return [traffic]
    clock = plan.chip.clock
    unit = f"ms a step at {clock / 1e9:.4g} GHz" if clock else "millions a step"
    cycles = [1e3 * w.cycles / clock if clock else w.cycles / 1e6 for w in works]
    return [(f"Estimated cycles, {unit}", cycles, _CYCLES), traffic]


def _title(plan: Plan) -> str:
    time = f"\nstep: {report.least_time(plan)}" if plan.seconds else ""
    return f"{plan.topology}, batch {plan.batch}\nmemory: {report.memory_use(plan)}{time}"


def _bars(axes, names: list[str], values: list[float], colour: str, title: str) -> None:
    bars = axes.barh(names, values, color=colour, height=0.7)
    axes.bar_label(bars, [_number(value) for value in values], padding=3, color=_GREY, fontsize=9)
    axes.set_title(title, loc="left", fontsize=10, color=_GREY)
    axes.margins(x=0.15)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.tick_params(axis="y", length=0)


def _number(value: float) -> str:
    if value == 0:
        return "–"
    return f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"

"""A picture of a plan: where the cycles and the traffic go."""

import os
import pathlib

from vit_jax.errors import UserError
from vit_jax.plan.report import Plan
from vit_jax.train.plot import save_figure

FORMATS = (".png", ".svg")

_CYCLES, _TRAFFIC, _GREY = "#0072B2", "#D55E00", "#555555"


def check(path: str | os.PathLike) -> None:
    """Raises UserError for a place or a format that cannot be, before minutes of compiling."""
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
    """Bars for each class of operations, in one file that appears whole or not at all."""
    import matplotlib
    from matplotlib.figure import Figure

    path = pathlib.Path(path)
    with matplotlib.rc_context({"svg.hashsalt": "vit-jax", "font.size": 10}):
        works = sorted(plan.traffic.classes.items(), key=lambda item: item[1].hbm_bytes)
        works = [(name, work) for name, work in works if work.hbm_bytes or work.cycles]
        names = [name for name, _ in works]
        figure = Figure(figsize=(11, 1.8 + 0.42 * len(names)), layout="constrained")
        cycles, traffic = figure.subplots(1, 2, sharey=True)
        clock = plan.chip.clock
        times = [work.cycles / (clock / 1e3 if clock else 1e6) for _, work in works]
        unit = "ms" if clock else "million"
        _bars(cycles, names, times, _CYCLES, f"Estimated cycles, {unit} a step")
        sizes = [work.hbm_bytes / 1e9 for _, work in works]
        _bars(traffic, names, sizes, _TRAFFIC, "HBM traffic, GB a step")
        figure.suptitle(_title(plan), x=0.01, ha="left", fontsize=11)
        save_figure(figure, path)


def _title(plan: Plan) -> str:
    return (
        f"{plan.topology}, batch {plan.batch}: {plan.memory.total / 1e9:.2f} GB a device, "
        + ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in plan.seconds.items())
    )


def _bars(axes, names: list[str], values: list[float], colour: str, title: str) -> None:
    bars = axes.barh(names, values, color=colour, height=0.7)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, color=_GREY, fontsize=9)
    axes.set_title(title, loc="left", fontsize=10, color=_GREY)
    axes.margins(x=0.15)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.tick_params(axis="y", length=0)

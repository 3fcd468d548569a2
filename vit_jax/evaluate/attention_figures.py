"""Draws what attention looks at."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluate.plot import FORMATS, require_matplotlib, save_figure

_TILE = 2.3  # inches of a picture's longer side
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.titlesize": 9, "svg.hashsalt": "vit-jax"}
_SHARES = "share of attention, as a multiple of an even share"


def check(out: str | os.PathLike) -> None:
    """Raises UserError for a file name that no figure can have, and without Matplotlib."""
    if pathlib.Path(out).suffix not in FORMATS:
        raise UserError(f"cannot draw into {str(out)!r}: expected a file name in .png or .svg")
    require_matplotlib()


def draw_maps(
    rows: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]],
    out: str | os.PathLike,
    mark: tuple[int, int] | None = None,
) -> None:
    """A row for each picture: itself, and its maps over it, all on one scale of colours.

    Args:
      rows: A picture uint8 [H, W, C], and maps [rows, columns] by title.
      mark: A patch (row, column) that asks, to be framed.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = 1 + max(len(maps) for _, maps in rows)
    every = np.concatenate([x.ravel() for _, maps in rows for x in maps.values()])
    top = max(2.0, float(np.percentile(every, 99.5)))  # an even share is never the brightest
    ratio = max(picture.shape[0] / picture.shape[1] for picture, _ in rows)
    size = (_TILE * max(columns, 2) + 0.9, (_TILE * ratio + 0.35) * len(rows))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        grid: Any = figure.subplots(len(rows), columns, squeeze=False)
        shown = None
        for line, (picture, maps) in zip(grid, rows, strict=True):
            for axes in line:
                axes.set_axis_off()
            height, width = picture.shape[:2]
            _picture(line[0], picture)
            line[0].set_title("what the model sees")
            for axes, (title, values) in zip(line[1:], maps.items(), strict=False):
                _picture(axes, np.repeat(picture.mean(axis=2, keepdims=True), 3, 2).astype("uint8"))
                shown = axes.imshow(
                    values,
                    cmap="inferno",
                    vmin=0,
                    vmax=top,
                    alpha=0.75,
                    extent=(0, width, height, 0),
                    interpolation="nearest",
                )
                axes.set_title(title)
            if mark is not None:
                cells = next(iter(maps.values())).shape
                tall, wide = height / cells[0], width / cells[1]
                corner = (mark[1] * wide, mark[0] * tall)
                frame = {"fill": False, "edgecolor": "#56B4E9", "linewidth": 1.8}
                for axes in line[: 1 + len(maps)]:
                    axes.add_patch(Rectangle(corner, wide, tall, **frame))
        figure.colorbar(shown, ax=grid, label=_SHARES, fraction=0.03, pad=0.01)  # pyright: ignore
        save_figure(figure, pathlib.Path(out))


def draw_distances(distances: Mapping[str, np.ndarray], out: str | os.PathLike) -> None:
    """A point for each head, by depth: pixels between the asking patch and those it looks at."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({**_STYLE, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.5, 3.6), layout="constrained")
        axes = figure.subplots()
        for depth, heads in enumerate(distances.values()):
            axes.plot([depth] * len(heads), heads, "o", color="#0072B2", alpha=0.6, markersize=4)
        means = [heads.mean() for heads in distances.values()]
        axes.plot(means, color="#D55E00", linewidth=1.4, label="mean over heads")
        axes.set(
            xlabel="layer",
            ylabel="mean attention distance, pixels",
            ylim=(0, 1.15 * max(x.max() for x in distances.values())),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        save_figure(figure, pathlib.Path(out))


def draw_positions(similarity: np.ndarray, grid: tuple[int, int], out: str | os.PathLike) -> None:
    """For patches of the grid the cosines with all others [T, T]; of a large grid every few."""
    import matplotlib
    from matplotlib.figure import Figure

    rows, columns = (_few(side) for side in grid)
    maps = similarity.reshape(*grid, *grid)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 5.2 * len(rows) / len(columns)), layout="constrained")
        tiles: Any = figure.subplots(len(rows), len(columns), squeeze=False)
        shown = None
        for line, row in zip(tiles, rows, strict=True):
            for axes, column in zip(line, columns, strict=True):
                shown = axes.imshow(maps[row, column], cmap="viridis", vmin=-1, vmax=1)
                axes.set(xticks=[], yticks=[])
                if row == rows[-1]:
                    axes.set_xlabel(column)
                if column == columns[0]:
                    axes.set_ylabel(row)
        figure.supxlabel("column of the patch", fontsize=9)
        figure.supylabel("row of the patch", fontsize=9)
        figure.colorbar(shown, ax=tiles, label="cosine", fraction=0.04)  # pyright: ignore
        save_figure(figure, pathlib.Path(out))


def draw_filters(filters: np.ndarray, out: str | os.PathLike) -> None:
    """Filters [count, height, width, channels], each on a scale of its own."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(7, len(filters))
    rows = -(-len(filters) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(0.95 * columns, 0.95 * rows + 0.4), layout="constrained")
        tiles = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for axes in tiles:
            axes.set_axis_off()
        for axes, x in zip(tiles, filters, strict=False):
            _picture(axes, (255 * (x - x.min()) / max(np.ptp(x), 1e-12)).astype("uint8"))
        figure.suptitle("principal components, the largest variance first", fontsize=9)
        save_figure(figure, pathlib.Path(out))


def _picture(axes: Any, pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    pixels = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")


def _few(side: int) -> list[int]:
    """At most 7 numbers of 0 to side - 1, evenly apart."""
    return list(range(0, side, -(-side // 7)))

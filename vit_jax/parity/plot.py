"""The growth of the error from block to block, as an inline SVG."""

import html
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vit_jax.parity.figures import FLOAT64_BAR, Comparison, Drift

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 120
_FLOOR = 1e-17  # an error of 0 has no logarithm: it is drawn here


class Canvas(NamedTuple):
    """The size of a picture in pixels, lettered to be read at that size, and its most labels."""

    width: int
    height: int
    most_labels: int


PAGE, PHONE = Canvas(920, 420, 30), Canvas(340, 340, 10)


class Series(NamedTuple):
    """A line of the plot: CSS class, legend, and the figure of a drift."""

    css: str
    label: str
    values: list[float]


def error_growth(comparison: Comparison, canvas: Canvas) -> str:
    """`<svg>` with one line for each setting; colours are the page's CSS classes."""
    matched, as_shipped = comparison.matched, comparison.as_shipped
    outputs = [*matched.blocks, matched.logits]
    series = [
        Series(
            "shipped",
            "as shipped, float64",
            [d.error for d in (*as_shipped.blocks, as_shipped.logits)],
        ),
        Series("noise", "matched, float32", [d.error_float32 for d in outputs]),
        Series("matched", "matched, float64", [d.error for d in outputs]),
    ]
    axes = _Axes(canvas, len(outputs), [v for s in series for v in s.values])
    parts = [*_grid(axes), *_names(axes, outputs), *_bar(axes)]
    for one in series:
        parts += _line(axes, one, outputs)
    return (
        f'<svg viewBox="0 0 {canvas.width} {canvas.height}" role="img" '
        f'aria-label="relative error after each block, logarithmic">{"".join(parts)}</svg>'
    )


class _Axes:
    """Where a figure lies in the picture: blocks from left to right, decades upwards."""

    def __init__(self, canvas: Canvas, num_points: int, values: Sequence[float]):
        self.canvas = canvas
        self.right, self.bottom = canvas.width - _RIGHT, canvas.height - _BOTTOM
        self.num_points = num_points
        drawn = [max(v, _FLOOR) for v in values if math.isfinite(v)] + [FLOAT64_BAR]
        self.low = math.floor(math.log10(min(drawn)))
        self.high = max(math.ceil(math.log10(max(drawn))), self.low + 1)

    def x(self, index: int) -> float:
        step = (self.right - _LEFT) / self.num_points
        return _LEFT + step * (index + 0.5)

    def y(self, value: float) -> float:
        share = (math.log10(max(value, _FLOOR)) - self.low) / (self.high - self.low)
        return _TOP + (self.bottom - _TOP) * (1 - share)


def _grid(axes: _Axes) -> Iterator[str]:
    for decade in range(axes.low, axes.high + 1):
        y = axes.y(10.0**decade)
        yield f'<line class="grid" x1="{_LEFT}" x2="{axes.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        if decade % 2 == 0:
            yield f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            yield f'10<tspan dy="-5" font-size="9">{decade}</tspan></text>'


def _names(axes: _Axes, outputs: Sequence[Drift]) -> Iterator[str]:
    every = math.ceil(len(outputs) / axes.canvas.most_labels)
    for i, drift in enumerate(outputs):
        if i % every and i != len(outputs) - 1:
            continue
        x, y = axes.x(i), axes.bottom + 14
        name = html.escape(drift.ours.removeprefix("Transformer/"))
        yield f'<text class="tick" text-anchor="end" x="{x:.1f}" y="{y}" '
        yield f'transform="rotate(-50 {x:.1f} {y})">{name}</text>'


def _bar(axes: _Axes) -> Iterator[str]:
    y = axes.y(FLOAT64_BAR)
    yield f'<line class="bar" x1="{_LEFT}" x2="{axes.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    yield f'<text class="tick" text-anchor="end" x="{axes.right}" y="{y - 5:.1f}">'
    yield f"bar in float64: {FLOAT64_BAR:g}</text>"


def _line(axes: _Axes, series: Series, outputs: Sequence[Drift]) -> Iterator[str]:
    points = [
        (axes.x(i), axes.y(value), value, drift)
        for i, (value, drift) in enumerate(zip(series.values, outputs, strict=True))
        if math.isfinite(value)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
    # The attributes are for viewers that do not apply the page's style to the picture.
    yield f'<polyline class="{series.css}" fill="none" stroke="currentColor" points="{path}"/>'
    for x, y, value, drift in points:
        yield f'<circle class="{series.css}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
        yield f"<title>{html.escape(drift.ours)}: {value:.1e} ({series.label})</title></circle>"

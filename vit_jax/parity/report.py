"""A comparison as one self-contained HTML page, as Markdown, or as JSON."""

import html
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

from vit_jax.checkpoint.files.archive import replacing
from vit_jax.parity import figures
from vit_jax.parity.figures import Comparison, Setting
from vit_jax.parity.plot import PAGE, PHONE, error_growth
from vit_jax.parity.sections import Section, markdown, sections

_STYLE = """
:root { --text: #1b1f24; --soft: #5c6670; --rule: #d9dee3; --page: #fff; --panel: #f5f7f9;
        --matched: #1463c4; --shipped: #c2560c; --noise: #7fa9dc; --same: #1a7f37;
        --differs: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ec; --soft: #9aa4ad; --rule: #343b42; --page: #14181c; --panel: #1d2328;
          --matched: #6db1ff; --shipped: #ff9d57; --noise: #4b77a8; --same: #57c878;
          --differs: #ff8478; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
       max-width: 920px; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); }
.verdict { border-left: 4px solid; background: var(--panel); padding: .6rem 1rem; margin: 1rem 0; }
.same { color: var(--same); } .differs { color: var(--differs); }
.verdict span { color: var(--text); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
code { font-size: .92em; }
.narrow { display: none; }
svg { width: 100%; height: auto; } svg text { fill: var(--text); font-size: 12px; }
svg .tick { fill: var(--soft); font-size: 11px; } svg .grid { stroke: var(--rule); }
svg .bar { stroke: var(--same); stroke-dasharray: 6 4; }
polyline { fill: none; stroke-width: 2; }
polyline.matched { stroke: var(--matched); } circle.matched { fill: var(--matched); }
polyline.shipped { stroke: var(--shipped); } circle.shipped { fill: var(--shipped); }
polyline.noise { stroke: var(--noise); } circle.noise { fill: var(--noise); }
.key::before { content: ""; display: inline-block; width: 1.4em; height: 3px; margin-right: .4em;
               vertical-align: middle; background: var(--colour); }
.key { margin-right: 1.4em; white-space: nowrap; }
@media (max-width: 640px) {
  body { margin: 1rem auto; } .wide { display: none; } .narrow { display: block; }
  .stacked, .stacked tbody, .stacked tr { display: block; }
  .stacked tr:first-child { display: none; }
  .stacked tr { border-bottom: 1px solid var(--rule); padding: .35rem 0; }
  .stacked td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: 0; }
  .stacked td:first-child { font-weight: 600; }
  td { overflow-wrap: anywhere; }
  .stacked td:not(:first-child)::before { content: attr(data-label); color: var(--soft);
                                          text-align: left; } }
"""


def write_report(path: str | os.PathLike, comparison: Comparison) -> None:
    """Writes Markdown (.md), JSON (.json) or else the HTML page, by the end of the name.

    `path` appears whole or stays as it was. UserError if it cannot be.
    """
    formats = {".md": render_markdown, ".json": render_json}
    written = formats.get(pathlib.PurePath(os.fspath(path)).suffix, render)
    with replacing(path) as file:
        file.write(written(comparison).encode())


def render_json(comparison: Comparison) -> str:
    """Every figure."""
    return json.dumps(comparison.to_dict(), indent=2) + "\n"


def render_markdown(comparison: Comparison) -> str:
    """The page's figures as lists, which are read on a phone and in a terminal."""
    columns = ("", "matched numerics", "as shipped")
    tables = [
        Section("Logits", "", (), ((columns, list(figure_rows(comparison))),)),
        *sections(comparison),
        Section("Blocks", "", (), ((_BLOCK_COLUMNS, list(_block_rows(comparison))),)),
    ]
    return markdown(
        f"{comparison.model} against {comparison.against}",
        f"{comparison.verdict}: {conclusion(comparison)}",
        [f"{inputs(comparison)}.", *(f"Note: {note}." for note in comparison.notes)],
        tables,
        comparison.versions,
    )


def render(comparison: Comparison) -> str:
    """The page's HTML: nothing in it is loaded from elsewhere."""
    title = f"{comparison.model} against {comparison.against}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}: {comparison.verdict}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="soft">{html.escape(inputs(comparison))}</p>
{_verdict(comparison)}
{"".join(f"<p>Note: {html.escape(note)}.</p>" for note in comparison.notes)}
<h2>Logits</h2>{_table(("", "matched numerics", "as shipped"), figure_rows(comparison))}
{"".join(map(_section, sections(comparison)))}
<h2>Relative error from block to block</h2>{_legend()}
<div class="wide">{error_growth(comparison, PAGE)}</div>
<div class="narrow">{error_growth(comparison, PHONE)}</div>
<h2>What {comparison.against} ships otherwise</h2>{_differences(comparison)}
<h2>Blocks</h2>{_table(_BLOCK_COLUMNS, _block_rows(comparison))}
<h2>How it was measured</h2>{_method(comparison)}
<h2>Versions</h2>{_table(("", ""), comparison.versions.items())}
</body></html>
"""


def inputs(comparison: Comparison) -> str:
    """What was compared, in one line."""
    height, width = comparison.image_size
    return (
        f"weights: {comparison.weights}; {comparison.num_images} random images of "
        f"{height}×{width}; both sides in float64 and float32"
    )


def conclusion(comparison: Comparison) -> str:
    """The verdict, in one sentence."""
    return "; ".join([_of_logits(comparison), *(x.conclusion for x in sections(comparison))])


def _of_logits(comparison: Comparison) -> str:
    drift = comparison.matched.first_drift
    if comparison.matched.verdict == "same":
        return (
            "with matched numerics every block and the logits are those of "
            f"{comparison.against}, to {_number(comparison.matched.logits.error)} in float64"
        )
    if drift is not None:
        return f"the two drift apart from {drift.ours} on, by {_number(drift.error)} in float64"
    return "the formulas agree in float64, but float32 is less exact than it should be"


def about_shipped(comparison: Comparison) -> str:
    """What the reference as its users get it means for the verdict; '' where that says nothing."""
    if comparison.matched.verdict != "same" or not comparison.as_shipped.differences:
        return ""
    error = _number(comparison.as_shipped.logits.error)
    if comparison.as_shipped.verdict == "same":
        return f"{comparison.against} as shipped computes the same, to {error}"
    return (
        f"{comparison.against} as shipped differs, by {error} in the logits, because it chooses "
        f"otherwise: {shipped_otherwise(comparison)}. Neither the weights nor the formulas are at "
        "fault, and the verdict does not count it"
    )


def figure_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Name, matched, as shipped."""
    settings = comparison.matched, comparison.as_shipped

    def row(name: str, figure) -> tuple[str, str, str]:
        return (name, *(figure(setting) for setting in settings))

    return [
        row("largest difference, float64", lambda s: _number(s.logits.max_abs)),
        row("relative error, float64", lambda s: _number(s.logits.error)),
        row("relative error, ours in float32", lambda s: _number(s.logits.error_float32)),
        row("reference's own float32 noise", lambda s: _number(s.logits.noise_float32)),
        row("top-1 agreement", lambda s: f"{s.top1_agreement:.0%}"),
        row("drifts from", _first_drift),
        row("verdict", lambda s: s.verdict),
    ]


def block_errors(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Block, its error in float64 with matched numerics, and as shipped."""
    settings = comparison.matched, comparison.as_shipped
    outputs = ((*setting.blocks, setting.logits) for setting in settings)
    return [
        (matched.ours, _number(matched.error), _number(shipped.error))
        for matched, shipped in zip(*outputs, strict=True)
    ]


def shipped_otherwise(comparison: Comparison) -> str:
    """In what the reference as shipped is not ours, in one line."""
    differences = (
        f"{what}: {shipped} (ours: {ours})"
        for what, ours, shipped in comparison.as_shipped.differences
    )
    return "; ".join(differences) or "our numerics"


_BLOCK_COLUMNS = ("ours", "theirs", "matched, float64", "matched, float32", "as shipped, float64")


def _block_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    drifts = (*comparison.matched.blocks, comparison.matched.logits)
    return [
        (name, drift.theirs, error, _number(drift.error_float32), shipped)
        for (name, error, shipped), drift in zip(block_errors(comparison), drifts, strict=True)
    ]


def _section(section: Section) -> str:
    said = "".join(f"<p>{html.escape(text)}</p>" for text in section.remarks)
    tables = "".join(_table(columns, rows) for columns, rows in section.tables)
    return f"<h2>{section.title}</h2>{tables}{said}"


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _first_drift(setting: Setting) -> str:
    return "–" if setting.first_drift is None else setting.first_drift.ours


def _verdict(comparison: Comparison) -> str:
    sentences = ". ".join(filter(None, (conclusion(comparison), about_shipped(comparison))))
    text = html.escape(sentences)
    return (
        f'<div class="verdict {comparison.verdict}"><strong>{comparison.verdict}</strong>'
        f"<span>: {text}.</span></div>"
    )


def _legend() -> str:
    keys = (("matched", "matched, float64"), ("noise", "matched, ours in float32"))
    keys += (("shipped", "as shipped, float64"),)
    return "".join(
        f'<span class="key" style="--colour: var(--{css})">{label}</span>' for css, label in keys
    )


def _differences(comparison: Comparison) -> str:
    columns = ("", "ours, and matched", f"{comparison.against} as shipped")
    return _table(columns, comparison.as_shipped.differences)


def _method(comparison: Comparison) -> str:
    return (
        "<p>Relative error: max |ours − reference in float64| / standard deviation of the "
        f"reference. Same means: at most {figures.FLOAT64_BAR:g} in float64 after every block "
        f"and in the logits, and in float32 at most {figures.FLOAT32_BAR:g} or "
        f"{figures.NOISE_FACTOR} times the reference's own float32 noise, whichever is larger. "
        f"Matched numerics: {comparison.against} built with the details above made ours; as "
        "shipped: what its users get. The verdict is that of the matched numerics.</p>"
    )


def _table(columns: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table that a phone shows row by row, with the name of its column before each cell."""
    names = [html.escape(column) for column in columns]
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{_cells(names, row)}</tr>" for row in rows)
    kind = ' class="stacked"' if len(names) > 2 else ""
    return f"<table{kind}><tr>{head}</tr>{body}</table>"


def _cells(names: Sequence[str], row: Iterable[str]) -> str:
    return "".join(
        f'<td data-label="{name}">{html.escape(str(cell))}</td>'
        for name, cell in zip(names, row, strict=True)
    )

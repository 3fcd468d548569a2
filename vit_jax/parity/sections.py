"""What a report says of gradients, training and pixels: sentences and small tables.

The terminal, the page and the Markdown show the same.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

from vit_jax.parity.figures import Comparison
from vit_jax.parity.gradients import GRADIENT_BAR, Gradients
from vit_jax.parity.pixels import PIXEL_BAR, Pixels
from vit_jax.parity.tensors import FLOOR, TensorError
from vit_jax.parity.training import LOSS_BAR, PARAMETER_BAR, Training

MOST_TENSORS = 5
Rows = list[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
      title: The heading.
      conclusion: The verdict and what it rests on, in one sentence without a full stop.
      remarks: What is to be known to read it, whole sentences.
      tables: Pairs of columns and rows; a row begins with its name.
    """

    title: str
    conclusion: str
    remarks: tuple[str, ...]
    tables: tuple[tuple[tuple[str, ...], Rows], ...]


def sections(comparison: Comparison) -> list[Section]:
    """One for each thing that was compared beside the logits."""
    found = []
    if comparison.gradients is not None:
        found.append(_of_gradients(comparison.gradients, comparison.against))
    if comparison.training is not None:
        found.append(_of_training(comparison.training, comparison.against))
    if comparison.pixels is not None:
        found.append(_of_pixels(comparison.pixels))
    return found


def _of_gradients(found: Gradients, against: str) -> Section:
    verdict = "those of" if found.verdict == "same" else "not those of"
    remarks = [
        f"The loss is the mean cross entropy with drawn labels: ours {found.loss:.12g}, "
        f"theirs {found.their_loss:.12g}.",
        f"{_MEASURE} Same means: at most {GRADIENT_BAR:g}.",
    ]
    if found.missing:
        remarks.append(f"The reference lacks or keeps fixed: {', '.join(found.missing)}.")
    return Section(
        "Gradients",
        f"the gradients of {len(found.tensors)} parameters are {verdict} {against}, to "
        f"{found.error:.1e} in float64",
        tuple(remarks),
        (_worst(found.tensors, "gradient"),),
    )


def _of_training(found: Training, against: str) -> Section:
    verdict = "as" if found.verdict == "same" else "otherwise than"
    remarks = (
        f"Both sides: {found.recipe}; weight decay applies to {found.num_decayed} of "
        f"{len(found.tensors)} parameters. Each step has a batch of its own.",
        "Without dropout and stochastic depth; BatchNorm normalises by its stored statistics, "
        "which do not change and are not compared.",
        f"{_MEASURE} Same means: losses at most {LOSS_BAR:g} apart, parameters {PARAMETER_BAR:g}.",
    )
    losses: Rows = [
        (f"step {i}", f"{ours:.10g}", f"{theirs:.10g}")
        for i, (ours, theirs) in enumerate(zip(found.losses, found.their_losses, strict=True), 1)
    ]
    return Section(
        "Training",
        f"{len(found.losses)} steps train {verdict} {against} does: losses to "
        f"{found.loss_error:.1e}, parameters to {found.error:.1e} in float64",
        remarks,
        ((("loss", "ours", "theirs"), losses), _worst(found.tensors, "parameter")),
    )


def _of_pixels(found: Pixels) -> Section:
    verdict = "the same" if found.verdict == "same" else "not the same"
    count = len(found.images)
    names = ", ".join(pathlib.Path(path).name for path in found.images)
    columns = ("prepared by", "largest, of 255", "mean, of 255", "logits", "top-1", "verdict")
    rows: Rows = [
        (
            p.pipeline,
            f"{p.largest:.3g}",
            f"{p.mean:.2g}",
            f"{p.logits:.1e}",
            f"{p.top1_agreement:.0%}",
            p.verdict if p.counts else f"{p.verdict}, not counted",
        )
        for p in found.pipelines
    ]
    remarks = (
        f"Images: {names}. Differences are in levels of 0 to 255; what they change in our logits "
        f"is relative. Same means: at most {PIXEL_BAR:g} of a level.",
        *(f"{p.pipeline}: settings {p.config}." for p in found.pipelines),
        *(f"{p.pipeline}: {known}." for p in found.pipelines for known in p.known),
    )
    ours = "1 image is" if count == 1 else f"{count} images are"
    return Section(
        "Pixels", f"{ours} prepared {verdict} by the libraries", remarks, ((columns, rows),)
    )


_MEASURE = (
    "Error: max |ours − reference| / max |reference| of each, or, where that is more, a share of "
    f"{FLOOR:g} of the largest number of all."
)


def _worst(tensors: tuple[TensorError, ...], what: str) -> tuple[tuple[str, ...], Rows]:
    """The worst few."""
    rows: Rows = [(x.ours, x.theirs, f"{x.error:.1e}") for x in tensors[:MOST_TENSORS]]
    return (f"worst {what}s", "theirs", "error"), rows


def markdown(
    title: str, verdict: str, facts: list[str], tables: list[Section], versions: dict[str, str]
) -> str:
    """A page that a phone shows without scrolling sideways: rows are items of lists."""
    parts = [f"# {title}", f"**{verdict}**", *facts]
    for section in tables:
        parts += [f"## {section.title}", *_sentences(section)]
        parts += ["\n".join(_items(*table)) for table in section.tables]
    parts += ["## Versions", "\n".join(f"- {name}: {v}" for name, v in versions.items())]
    return "\n\n".join(parts) + "\n"


def _sentences(section: Section) -> list[str]:
    text = section.conclusion
    return [*([f"{text[0].upper()}{text[1:]}."] if text else []), *section.remarks]


def _items(columns: tuple[str, ...], rows: Rows) -> Iterator[str]:
    yield f"{columns[0] or 'figure'}:\n"
    for name, *cells in rows:
        told = zip(columns[1:], cells, strict=True)
        yield f"- `{name}`: " + ", ".join(f"{column} {cell}" for column, cell in told)

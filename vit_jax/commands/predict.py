"""Predict the classes of images.

MODEL is the workdir of a training run, an official-style .npz, or a .safetensors that vit-jax
wrote. Images are files, folders with their subfolders, text files (.txt, .lst, .list) of paths, or
`-` for paths on standard input; tar files of samples (WebDataset); a table, an .npz, a prepared
dataset or a TFDS name; or those of --dataset, whatever it looks like. Labels are not read.

The result is a table for each image in a terminal, and otherwise one line an image, in their
order: path, class and probability with tabs between them. An image that cannot be read has a line
without a class, and is named on stderr.

A submission of image numbers and labels:
  vit-jax predict RUN --dataset test.csv --columns ImageId=number,Label=class --output sent.csv
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError, suggest
from vit_jax.evaluate import rows

if TYPE_CHECKING:
    from vit_jax.evaluate.predictions import Item, Prediction
    from vit_jax.inference import Classifier

TEXT = "text"
_FEW = 20  # images whose tables fit a terminal
_TOP = 5  # classes in a table
_MOST_NAMED = 10  # damaged images that are named on stderr
# What a column may hold, and its type; class, label and probability are of the likeliest class, and
# with a number of the one at that place: `class_2`.
_COLUMNS = {
    "number": int,
    "path": str,
    "label": int,
    "class": str,
    "probability": float,
    "error": str,
}
_RANKED = ("label", "class", "probability")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    add_image_arguments(parser)
    common.add_json_option(parser)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """What to classify, and what to write of it."""
    # Not "*", of which argparse takes none where an option stands between MODEL and the images.
    images = parser.add_argument(
        "images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="files, folders, lists, -, tar files, or a dataset",
    )
    images.required = False
    parser.add_argument(
        "--dataset",
        metavar="NAME_OR_PATH",
        help="in place of IMAGE: a dataset as `vit-jax eval` takes it",
    )
    parser.add_argument(
        "--split", help="of the dataset (test; of a file or a folder of classes, all that is in it)"
    )
    parser.add_argument("--tfds-data-dir", metavar="DIR", help="where TFDS keeps its datasets")
    parser.add_argument(
        "--top", type=int, metavar="N", help=f"classes an image ({_TOP} in a table, 1 in a line)"
    )
    parser.add_argument(
        "--format",
        metavar="NAME",
        help=f"{', '.join((TEXT, *rows.FORMATS))}; by default as --output is called",
    )
    parser.add_argument("--output", metavar="FILE", help="where to write (standard output)")
    parser.add_argument(
        "--columns",
        metavar="NAME,…",
        help=f"of {', '.join(_COLUMNS)}; NEW=NAME calls a column otherwise",
    )
    parser.add_argument(
        "--on-error",
        default="report",
        metavar="report|skip|raise",
        help="what an image that cannot be read gets: a line without a class (report), no line "
        "(skip), or the end of the command (raise)",
    )
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images at once (32)")


def run(args: argparse.Namespace) -> None:
    def load() -> "Classifier":
        return common.load_model(args, common.checkpoint(args.model_path, args.checkpoint))

    classify(args, load)


def classify(args: argparse.Namespace, load: "Callable[[], Classifier]") -> None:
    """Writes the classes of the images that the arguments of `add_image_arguments` name.

    The model is loaded when these are known to make sense.
    """
    _check(args)
    items, count = _items(args)  # cheap, so before the model is read
    form = _format(args, count)
    top = args.top or (_TOP if form in (TEXT, "json") else 1)

    from vit_jax.evaluate import predictions

    loaded = load()
    found = predictions.predict(loaded, items, top=top, batch=args.batch)
    if args.output is not None or not sys.stdout.isatty():  # else the lines themselves show it
        found = common.progress(found, count, "predicting")
    failures = _Failures(args.on_error)
    with _writer(args, form, min(top, loaded.num_classes), loaded) as write:
        for prediction in failures.watched(found):
            write(prediction)
        failures.report(count)


def _check(args: argparse.Namespace) -> None:
    for name in ("top", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1; got {value}")
    if bool(args.images) == (args.dataset is not None):
        raise UserError("name the images: files, folders, lists of paths, `-`, or --dataset")
    if args.on_error not in ("report", "skip", "raise"):
        raise UserError(f"--on-error must be report, skip or raise; got {args.on_error!r}")
    known = (TEXT, *rows.FORMATS)
    if args.format is not None and args.format not in known:
        hint = suggest(args.format, known)
        raise UserError(f"unknown --format {args.format!r}.{hint} Known: {', '.join(known)}")
    if args.json and args.format not in (None, "json"):
        raise UserError(f"--json and --format {args.format} exclude each other")


def _items(args: argparse.Namespace) -> "tuple[Iterator[Item], int]":
    """The images, to be read one by one, and their number."""
    from vit_jax.evaluate import predictions
    from vit_jax.input_pipeline import inputs

    if args.dataset is not None:
        from vit_jax.input_pipeline.sources import open_source

        source = open_source(args.dataset, args.split, data_dir=args.tfds_data_dir, labelled=False)
    else:
        source = inputs.open_images(args.images, args.split, data_dir=args.tfds_data_dir)
    return predictions.of_source(source), len(source)


def _format(args: argparse.Namespace, count: int) -> str:
    if args.json or args.format:
        form = args.format or "json"
    elif args.output is not None:
        form = rows.format_of(args.output)
    else:
        people = sys.stdout.isatty() and count <= _FEW and not args.columns
        form = TEXT if people else "tsv"
    if form != TEXT:
        rows.check(form, args.output)
    if form in (TEXT, "json") and args.columns:
        raise UserError(f"--columns are of tsv, csv, jsonl and parquet, not of {form}")
    if form == TEXT and args.output is not None:
        raise UserError("--format text is for the terminal; files are tsv, csv, jsonl, …")
    _columns(args.columns, args.top or 1)
    return form


# --- what is written -----------------------------------------------------------------------------


@contextlib.contextmanager
def _writer(args: argparse.Namespace, form: str, top: int, loaded: "Classifier"):
    """A function that writes a prediction."""
    if form == TEXT:
        yield lambda prediction: _print_table(prediction, loaded)
        return
    columns = _columns(args.columns, top)
    types = {name: _COLUMNS[_base(content)] for name, content in columns.items()}
    with rows.writing(form, types, args.output) as write:
        if form == "json":
            yield lambda prediction: write(_nested(prediction, loaded))
        else:
            yield lambda prediction: write(_row(prediction, columns, loaded))


def _columns(asked: str | None, top: int) -> dict[str, str]:
    """Name of each column -> what it holds; UserError for what no column holds."""
    if asked is None:
        places = range(2, top + 1)
        more = [f"{name}_{place}" for place in places for name in ("class", "probability")]
        names = ["path", "class", "probability", *more]
        return {name: name for name in names}
    columns: dict[str, str] = {}
    for text in asked.split(","):
        name, _, content = text.strip().rpartition("=")
        base, _, place = content.rpartition("_")
        known = content in _COLUMNS or (base in _RANKED and place.isdecimal() and int(place) > 0)
        if not known:
            raise UserError(
                f"--columns: nothing is called {content!r}.{suggest(content, _COLUMNS)} Known: "
                f"{', '.join(_COLUMNS)}, and class_2 and so on with --top"
            )
        if _place(content) > top:
            raise UserError(f"--columns: {content!r} needs --top {_place(content)}, not {top}")
        if (name or content) in columns:
            raise UserError(f"--columns names {name or content!r} twice")
        columns[name or content] = content
    return columns


def _base(content: str) -> str:
    return content if content in _COLUMNS else content.rpartition("_")[0]


def _place(content: str) -> int:
    return 1 if content in _COLUMNS else int(content.rpartition("_")[2])


def _row(
    prediction: "Prediction", columns: Mapping[str, str], loaded: "Classifier"
) -> dict[str, Any]:
    return {name: _value(prediction, content, loaded) for name, content in columns.items()}


def _value(prediction: "Prediction", content: str, loaded: "Classifier") -> Any:
    base, place = _base(content), _place(content) - 1
    if base not in _RANKED:
        return getattr(prediction, base) or None
    if place >= len(prediction.labels):
        return None
    if base == "probability":
        return _finite(prediction.probabilities[place])
    label = prediction.labels[place]
    return label if base == "label" else loaded.class_name(label)


def _finite(probability: float) -> float | None:
    """None for a number that JSON does not know, which weights that are not finite give."""
    return probability if math.isfinite(probability) else None


def _nested(prediction: "Prediction", loaded: "Classifier") -> dict[str, Any]:
    ranked = zip(prediction.labels, prediction.probabilities, strict=True)
    found: list[dict[str, Any]] = [
        {
            "rank": rank,
            "class": label,
            "name": loaded.class_name(label),
            "probability": _finite(probability),
        }
        for rank, (label, probability) in enumerate(ranked, 1)
    ]
    error = {"error": prediction.error} if prediction.error else {}
    return {"image": prediction.path, "predictions": found, **error}


def _print_table(prediction: "Prediction", loaded: "Classifier") -> None:
    print(prediction.path)
    if prediction.error:
        print(f" {prediction.error}\n")
        return
    lines = [
        (
            str(row["rank"]),
            row["name"],
            "not finite" if row["probability"] is None else f"{row['probability']:.2%}",
        )
        for row in _nested(prediction, loaded)["predictions"]
    ]
    common.print_table((">rank", "class", ">probability"), lines)


class _Failures:
    """The images that could not be read, treated by the rule."""

    def __init__(self, rule: str):
        self._rule, self._count = rule, 0
        self._named: list[str] = []

    def watched(self, found: "Iterable[Prediction]") -> "Iterator[Prediction]":
        """The predictions that are written: none before there is one with a class."""
        held: list[Prediction] = []
        for prediction in found:
            if prediction.error:
                self._failed(prediction.error)
            if not prediction.error or self._rule == "report":
                held.append(prediction)
            if self._count < prediction.number:
                yield from held
                held.clear()

    def _failed(self, error: str) -> None:
        if self._rule == "raise":
            raise UserError(error)
        self._count += 1
        if len(self._named) < _MOST_NAMED:
            self._named.append(error)

    def report(self, total: int) -> None:
        """Says on stderr which images could not be read; UserError where none could."""
        if not self._count:
            return
        if self._count == total:
            others = f" Nor could any of the other {total - 1} images be read." if total > 1 else ""
            raise UserError(f"{self._named[0]}.{others}" if others else self._named[0])
        result = "have no class" if self._rule == "report" else "are left out"
        print(f"{self._count} of {total} images could not be read and {result}:", file=sys.stderr)
        for error in self._named:
            print(f"  {error}", file=sys.stderr)
        if self._count > len(self._named):
            print(f"  … and {self._count - len(self._named)} more", file=sys.stderr)

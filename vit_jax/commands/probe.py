"""Judge features that `vit-jax embed` has written: few-shot and linear probes, nearest neighbours.

TRAIN and TEST are folders of embeddings of one model, of data with labels; what is finished of them
is read. The classes are matched by their names. A linear probe on all examples is --shots 0.

  vit-jax embed RUN data/train --out features/train
  vit-jax embed RUN data/test --out features/test
  vit-jax probe features/train features/test --probe knn --k 10

`vit-jax eval --probe` does the same for a model and a dataset, without writing its features.
"""

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.evaluate.fewshot import Examples
    from vit_jax.input_pipeline.records import Source

PROBES = ("fewshot", "knn")

# For each option: the probes that take it, its type, and its default.
_OPTIONS = {
    "shots": (("fewshot",), int, 10),
    "seed": (("fewshot",), int, 0),
    "l2": (("fewshot",), str, None),
    "k": (("knn",), int, 20),
    "temperature": (("knn",), float, 0.07),
    "train_split": (PROBES, str, "train"),
}
_HELP = {
    "shots": ("N", "examples of every class to learn from (10); 0: all"),
    "seed": ("N", "draws the examples (0)"),
    "l2": ("L2,…", "strengths of the penalty, one of which cross-validation chooses"),
    "k": ("N", "neighbours that vote (20)"),
    "temperature": ("T", "temperature of the neighbours' votes exp(cosine / T) (0.07)"),
    "train_split": ("SPLIT", "split to learn from (train)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("train", metavar="TRAIN", help="embeddings to learn from")
    parser.add_argument("test", metavar="TEST", help="embeddings to test on")
    parser.add_argument(
        "--what", default="features", metavar="KIND", help="which of the vectors (features)"
    )
    parser.add_argument(
        "--by-position",
        action="store_true",
        help="class i of TEST is class i of TRAIN, whatever their names are",
    )
    _add_options(parser, "fewshot", [name for name in _OPTIONS if name != "train_split"])
    common.add_json_option(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vit-jax eval`."""
    group = parser.add_argument_group(
        "probes", "judge the features instead of the head, on a dataset of any classes"
    )
    _add_options(group, None, _OPTIONS)


def _add_options(parser: Any, default: str | None, names: Iterable[str]) -> None:
    parser.add_argument(
        "--probe",
        choices=PROBES,
        default=default,
        help="fewshot: linear regression in closed form; knn: nearest neighbours",
    )
    for name in names:
        metavar, text = _HELP[name]
        kind = _OPTIONS[name][1]
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)


def options(kind: str) -> list[str]:
    """The names of the options that a probe takes."""
    return [name for name, (probes, _, _) in _OPTIONS.items() if kind in probes]


def check(args: argparse.Namespace) -> None:
    """Completes the options of the chosen probe.

    Raises:
      UserError: for one that belongs to another probe, or has no sensible value.
    """
    for name, (probes, _, default) in _OPTIONS.items():
        if getattr(args, name, None) is None:
            setattr(args, name, default)
        elif args.probe not in probes:
            raise UserError(f"--{name.replace('_', '-')} goes with --probe {' or '.join(probes)}")
    if args.shots < 0 or args.seed < 0:
        raise UserError("--shots and --seed must be at least 0")
    if args.k < 1 or not args.temperature > 0:
        raise UserError("--k must be at least 1, and --temperature above 0")


def run(args: argparse.Namespace) -> None:
    from vit_jax.evaluate import probing

    check(args)
    settings = vars(args) | {"l2": () if args.l2 is None else numbers(args.l2)}
    shots = args.shots if args.probe == "fewshot" else 0
    train, test, notes = probing.open_embeddings(
        args.train,
        args.test,
        args.what,
        by_position=args.by_position,
        shots=shots,
        seed=args.seed,
    )
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    figures = probing.figures(args.probe, train, test, settings)
    result = {"read": args.test, "num_examples": len(test), "probe": args.probe}
    result |= {"num_train": len(train), "learnt_from": args.train, **_how(args), **figures}
    if args.json:
        common.print_json(result)
        return
    print(
        f"{args.probe} on {len(train)} examples: top-1 {figures['top1']:.2%} "
        f"({args.test}, {len(test)} examples)"
    )


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the probe was made with."""
    if args.probe == "fewshot":
        return {"shots": args.shots or None, "seed": args.seed}
    return {"k": args.k, "temperature": args.temperature}


def of_dataset(args: argparse.Namespace) -> dict[str, Any]:
    """The accuracy `top1` of the probe on the split, and the settings it learnt with.

    Raises:
      UserError: as `inference.load_weights` and `open_source`; for classes that differ between
        the splits, or examples with several labels.
    """
    from vit_jax.evaluate import features, probing
    from vit_jax.input_pipeline import loader

    settings = vars(args) | {"l2": () if args.l2 is None else numbers(args.l2)}
    model = features.FeatureModel.load(
        args.model_path,
        args.model,
        part=args.part,
        image_size=args.image_size,
        allow=args.allow,
    )
    to_learn, to_test = probing.open_splits(
        args.dataset,
        args.train_split,
        args.split or "test",
        by_position=args.by_position,
        shots=args.shots if args.probe == "fewshot" else 0,
        seed=args.seed,
        data_dir=args.tfds_data_dir,
    )
    read = []

    def examples(source: "Source") -> "Examples":
        batches = loader.TestDataset(
            source, model.prepare, batch_size=args.batch, on_error=args.on_error
        )
        read.append(batches)
        shown = common.progress(batches, len(batches), f"features of {source.description}")
        return model.over(shown, source.num_classes)

    train, test = examples(to_learn), examples(to_test)
    learnt = {"read": to_test.description, "num_examples": len(test), "probe": args.probe}
    learnt |= {"num_train": len(train), "learnt_from": to_learn.description}
    learnt |= common.skipped(args, [name for dataset in read for name in dataset.errors])
    return learnt | _how(args) | probing.figures(args.probe, train, test, settings)


def numbers(text: str) -> list[float]:
    """The values of `--l2`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--l2={text}; expected numbers with commas between them") from error

"""`vit-jax eval --probe`: how good the features are, whatever the head was trained for."""

import argparse
from typing import Any

from vit_jax.commands import common
from vit_jax.errors import UserError

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
    group = parser.add_argument_group(
        "probes", "judge the features instead of the head, on a dataset of any classes"
    )
    group.add_argument(
        "--probe",
        choices=PROBES,
        help="fewshot: linear regression in closed form; knn: nearest neighbours",
    )
    for name, (_, kind, _) in _OPTIONS.items():
        metavar, text = _HELP[name]
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)


def check(args: argparse.Namespace) -> None:
    """Completes the options of the chosen probe.

    Raises:
      UserError: for one that belongs to another probe, or has no sensible value.
    """
    for name, (probes, _, default) in _OPTIONS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif args.probe not in probes:
            raise UserError(f"--{name.replace('_', '-')} goes with --probe {' or '.join(probes)}")
    if args.shots < 0 or args.seed < 0:
        raise UserError("--shots and --seed must be at least 0")
    if args.k < 1 or not args.temperature > 0:
        raise UserError("--k must be at least 1, and --temperature above 0")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The accuracy `top1` of the probe on the split, and the settings it learnt with.

    Raises:
      UserError: as `inference.load_weights` and `open_source`; for classes that differ between
        the splits, or examples with several labels.
    """
    from vit_jax.evaluate import features, fewshot
    from vit_jax.input_pipeline import classes, loader, sources

    l2s = fewshot.L2S if args.l2 is None else _numbers(args.l2)
    model = features.FeatureModel.load(
        args.model_path,
        args.model,
        part=args.part,
        image_size=args.image_size,
        allow=args.allow,
    )

    to_learn, to_test = (
        sources.open_source(args.dataset, split, data_dir=args.tfds_data_dir)
        for split in (args.train_split, args.split or "test")
    )
    names = classes.names_of(to_learn)
    order = classes.match(
        classes.names_of(to_test),
        names,
        dataset=to_test.description,
        model=to_learn.description,
        by_position=args.by_position,
    )
    to_test = classes.Relabelled(to_test, order, names)
    if args.probe == "fewshot" and args.shots:
        to_learn = features.draw_shots(to_learn, args.shots, args.seed)
    read = []

    def examples(source: sources.Source) -> fewshot.Examples:
        batches = loader.TestDataset(
            source, model.prepare, batch_size=args.batch, on_error=args.on_error
        )
        read.append(batches)
        shown = common.progress(batches, len(batches), f"features of {source.description}")
        return model.over(shown, source.num_classes)

    train, test = examples(to_learn), examples(to_test)
    learnt = {"read": to_test.description, "num_examples": len(test), "probe": args.probe}
    learnt |= {"num_train": len(train), "learnt_from": to_learn.description}
    learnt |= common.skipped(args, *read)
    if args.probe == "knn":
        top1 = fewshot.knn(train, test, args.k, args.temperature)
        return learnt | {"k": args.k, "temperature": args.temperature, "top1": top1}
    fitted = fewshot.linear_probe(train, test, l2s)
    return learnt | {"shots": args.shots or None, "seed": args.seed} | fitted


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--l2={text}; expected numbers with commas between them") from error

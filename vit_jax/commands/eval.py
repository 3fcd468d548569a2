"""Measure the accuracy on a dataset. Every example counts exactly once.

MODEL is the workdir of a training run, an official-style .npz, or a .safetensors that vit-jax
wrote. Where images have several labels, a prediction is right if it is any of them, and an image
without labels does not count. The classes of the dataset are those of the model that have the same
names, in whatever order; the dataset may have fewer.

With --watch, MODEL is a run that goes on, on this host or another. Its checkpoints are evaluated as
they appear, by --dataset and what goes with it, or without --dataset by the evaluations of the
run's config that are `standalone`. It ends when the run's last step is evaluated. Ctrl-C ends it
too, and the same command goes on where it stood. The figures lie in MODEL/evals/NAME, and
`vit-jax plot` draws them.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common, probe, watch
from vit_jax.errors import UserError, some

if TYPE_CHECKING:
    from vit_jax.inference import Classifier
    from vit_jax.input_pipeline.loader import TestDataset
    from vit_jax.input_pipeline.records import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument(
        "--dataset",
        metavar="NAME_OR_PATH",
        help="a folder SPLIT/CLASS/ or CLASS/ of images, a file (table of path and label, table of "
        "pixels, .npz), or a TensorFlow Datasets name",
    )
    parser.add_argument(
        "--split", help="default: test; of a file or a folder of classes, all that is in it"
    )
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with a damaged image (raise); skip leaves it out, and says how many",
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at once (64)")
    parser.add_argument("--tfds-data-dir", metavar="DIR", help="where TFDS keeps its datasets")
    add_label_arguments(parser)
    probe.add_options(parser)
    watch.add_arguments(parser)
    common.add_json_option(parser)


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """What the labels of the dataset mean."""
    parser.add_argument(
        "--by-position",
        action="store_true",
        help="class i of the dataset is output i of the model, whatever their names are; if not "
        "all classes are there, their names must be the outputs' numbers from 0",
    )
    parser.add_argument(
        "--real-labels",
        metavar="FILE",
        help="ImageNet-ReaL's real.json, in place of the labels of ImageNet's validation images",
    )


def run(args: argparse.Namespace) -> None:
    if args.dataset is None and not args.watch:
        raise UserError("--dataset=NAME_OR_PATH says what to evaluate on; it is missing")
    if args.real_labels is not None and args.probe:
        raise UserError("--real-labels are several for an image; a probe learns one each")
    if args.batch < 1:
        raise UserError(f"--batch must be at least 1; got {args.batch}")

    probe.check(args)
    watch.check(args)
    if args.watch:
        watch.run(args)
        return
    args.model_path = common.checkpoint(args.model_path, args.checkpoint)

    result: dict[str, Any] = {"dataset": args.dataset, "split": args.split}
    if args.probe:
        result |= probe.of_dataset(args)
    else:
        loaded = common.load_model(args, args.model_path)
        result |= of_classes(args, loaded, open_source(args))
    how = f"{args.probe} on {result['num_train']} examples: " if args.probe else ""
    print_result(args, result, how)


def open_source(args: argparse.Namespace) -> "Source":
    """The dataset, with ReaL's labels if they are asked for."""
    from vit_jax.input_pipeline import real_labels, sources

    source = sources.open_source(args.dataset, args.split, data_dir=args.tfds_data_dir)
    if args.real_labels is None:
        return source
    return real_labels.RealLabels(source, args.real_labels)


def of_classes(args: argparse.Namespace, loaded: "Classifier", source: "Source") -> dict[str, Any]:
    """The figures of a classifier; a line on stderr says how classes were matched with its own."""
    dataset, matched = _matched(args, loaded, source)
    result = {"read": dataset.description} | evaluate(loaded, dataset)
    result |= common.skipped(args, dataset.errors)
    print(matched, file=sys.stderr)  # Only now: what fails has one message.
    return result


def print_result(args: argparse.Namespace, result: dict[str, Any], how: str = "") -> None:
    """The figures, as JSON or in a line that begins with `how`."""
    if args.json:
        common.print_json(result)
        return
    figures = [f"{k.replace('top', 'top-')} {v:.2%}" for k, v in result.items() if k[:3] == "top"]
    where = f"{result['read']}, {result['num_examples']} examples"
    if "num_skipped" in result:
        where += f", {result['num_skipped']} skipped"
    print(f"{how}{', '.join(figures)} ({where})")


def evaluate(loaded: "Classifier", dataset: "TestDataset") -> dict[str, Any]:
    """`num_examples`, and the shares whose class is the likeliest (`top1`) and, for more than
    five classes, among the five likeliest (`top5`).
    """
    from vit_jax.evaluate.top_k import counts

    sums: dict[str, int] = {}
    for batch in common.progress(dataset, len(dataset), "evaluating"):
        found = counts(loaded.logits(batch["image"]), batch["label"], batch["mask"])
        sums = {name: sums.get(name, 0) + int(n) for name, n in found.items()}
    count = sums.pop("counted")
    if not count:
        raise UserError("no example of the dataset has a label")
    tops = {"correct": "top1", "correct_top5": "top5"}
    return {"num_examples": count} | {tops[name]: n / count for name, n in sums.items()}


def _matched(
    args: argparse.Namespace, loaded: "Classifier", source: "Source"
) -> "tuple[TestDataset, str]":
    """The dataset with the model's class numbers, and a line that says how they were found."""
    from vit_jax.input_pipeline import classes, loader

    known = loaded.class_names
    outputs = loaded.num_classes if known is None else list(known)
    names = classes.names_of(source)
    order = classes.match(
        names,
        outputs,
        dataset=args.dataset,
        model=args.model_path,
        by_position=args.by_position,
    )
    how = "name"
    if args.by_position or known is None:
        how, names = (
            "position",
            [
                f"{name} = {loaded.class_name(output)}"
                for name, output in zip(names, order, strict=True)
            ],
        )
    dataset = loader.TestDataset(
        classes.Relabelled(source, order, outputs),
        loaded.prepare,
        batch_size=args.batch,
        on_error=args.on_error,
    )
    return dataset, (
        f"{source.description}: {len(source)} images of {len(names)} classes, matched by {how}: "
        f"{some(names, 10)}"
    )

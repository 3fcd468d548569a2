"""Measure the accuracy on a dataset. Every example counts exactly once.

MODEL is the workdir of a training run, an official-style .npz, or a .safetensors that vit-jax
wrote. Where images have several labels, a prediction is right if it is any of them, and an image
without labels does not count. The classes of the dataset are those of the model that have the same
names, in whatever order; the dataset may have fewer.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common, probe
from vit_jax.errors import UserError, some

if TYPE_CHECKING:
    from vit_jax.inference import LoadedModel
    from vit_jax.input_pipeline.loader import TestDataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME_OR_PATH",
        help="a folder SPLIT/CLASS/ or CLASS/ of images, a file (table of path and label, table of "
        "pixels, .npz), or a TensorFlow Datasets name",
    )
    parser.add_argument(
        "--split", help="default: test; of a file or a folder of classes, all that is in it"
    )
    parser.add_argument(
        "--by-position",
        action="store_true",
        help="class i of the dataset is output i of the model, whatever their names are; if not "
        "all classes are there, their names must be the outputs' numbers from 0",
    )
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with a damaged image (raise); skip leaves it out, and says how many",
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at once (64)")
    parser.add_argument("--tfds-data-dir", metavar="DIR", help="where TFDS keeps its datasets")
    parser.add_argument(
        "--real-labels",
        metavar="FILE",
        help="ImageNet-ReaL's real.json, in place of the labels of ImageNet's validation images",
    )
    probe.add_arguments(parser)
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.real_labels is not None and args.probe:
        raise UserError("--real-labels are several for an image; a probe learns one each")
    if args.batch < 1:
        raise UserError(f"--batch must be at least 1; got {args.batch}")

    probe.check(args)
    args.model_path = common.checkpoint(args.model_path, args.checkpoint)

    result: dict[str, Any] = {"dataset": args.dataset, "split": args.split}
    if args.probe:
        result |= probe.run(args)
    else:
        loaded = common.load_model(args, args.model_path)
        dataset, matched = _dataset(args, loaded)
        result |= {"read": dataset.description} | evaluate(loaded, dataset)
        result |= common.skipped(args, dataset)
        print(matched, file=sys.stderr)  # Only now: what fails has one message.
    if args.json:
        common.print_json(result)
        return
    figures = [f"{k.replace('top', 'top-')} {v:.2%}" for k, v in result.items() if k[:3] == "top"]
    where = f"{result['read']}, {result['num_examples']} examples"
    if "num_skipped" in result:
        where += f", {result['num_skipped']} skipped"
    how = f"{args.probe} on {result['num_train']} examples: " if args.probe else ""
    print(f"{how}{', '.join(figures)} ({where})")


def evaluate(loaded: "LoadedModel", dataset: "TestDataset") -> dict[str, Any]:
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


def _dataset(args: argparse.Namespace, loaded: "LoadedModel") -> "tuple[TestDataset, str]":
    """The dataset with the model's class numbers, and a line that says how they were found."""
    from vit_jax.input_pipeline import classes, loader, real_labels, sources

    source = sources.open_source(args.dataset, args.split, data_dir=args.tfds_data_dir)
    if args.real_labels is not None:
        source = real_labels.RealLabels(source, args.real_labels)
    known = loaded.weights.model
    outputs = known.num_classes if known.class_names is None else known.class_names
    names = classes.names_of(source)
    order = classes.match(
        names,
        outputs,
        dataset=args.dataset,
        model=args.model_path,
        by_position=args.by_position,
    )
    how = "name"
    if args.by_position or known.class_names is None:
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

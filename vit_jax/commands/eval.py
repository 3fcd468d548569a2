"""Measure the accuracy on a dataset. Every example counts exactly once.

MODEL is the workdir of a training run, an official-style .npz, or a .safetensors that vit-jax
wrote. Where images have several labels, a prediction is right if it is any of them, and an image
without labels does not count.
"""

import argparse
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common, probe
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.inference import LoadedModel
    from vit_jax.input_pipeline.loader import TestDataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME_OR_PATH",
        help="TensorFlow Datasets name, a folder SPLIT/CLASS/*.jpg, or a CSV file of path,labels",
    )
    parser.add_argument("--split", default="test", help="default: test")
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

    result = {"dataset": args.dataset, "split": args.split}
    if args.probe:
        result |= probe.run(args)
    else:
        loaded = common.load_model(args, args.model_path)
        result |= evaluate(loaded, _dataset(args, loaded))
    if args.json:
        common.print_json(result)
        return
    figures = [f"{k.replace('top', 'top-')} {v:.2%}" for k, v in result.items() if k[:3] == "top"]
    where = f"{args.dataset} {args.split}, {result['num_examples']} examples"
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


def _dataset(args: argparse.Namespace, loaded: "LoadedModel") -> "TestDataset":
    from vit_jax.input_pipeline import loader, real_labels, sources

    source = sources.open_source(args.dataset, args.split, data_dir=args.tfds_data_dir)
    if args.real_labels is not None:
        source = real_labels.RealLabels(source, args.real_labels)
    if source.num_classes != loaded.weights.model.num_classes:
        raise UserError(
            f"{args.model_path!r} tells {loaded.weights.model.num_classes} classes apart, the "
            f"dataset {args.dataset!r} has {source.num_classes}: evaluate on the classes it was "
            "trained on"
        )
    return loader.TestDataset(source, loaded.prepare, batch_size=args.batch)

"""Measure the accuracy on a dataset. Every example counts exactly once.

MODEL is the workdir of a training run, an official-style .npz, or a .safetensors that vit-jax
wrote.
"""

import argparse
import os
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.inference import LoadedModel
    from vit_jax.input_pipeline.loader import TestDataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME_OR_DIR",
        help="TensorFlow Datasets name, or a folder SPLIT/CLASS/*.jpg",
    )
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at once (64)")
    parser.add_argument("--tfds-data-dir", metavar="DIR", help="where TFDS keeps its datasets")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.batch < 1:
        raise UserError(f"--batch must be at least 1; got {args.batch}")

    from vit_jax import inference

    loaded = inference.load_model(args.model_path, model=args.model)
    dataset = _dataset(args, loaded)
    result = {"dataset": args.dataset, "split": args.split} | evaluate(loaded, dataset)
    if args.json:
        common.print_json(result)
        return
    figures = [f"{k.replace('top', 'top-')} {v:.2%}" for k, v in result.items() if k[:3] == "top"]
    where = f"{args.dataset} {args.split}, {result['num_examples']} examples"
    print(f"{', '.join(figures)} ({where})")


def evaluate(loaded: "LoadedModel", dataset: "TestDataset") -> dict[str, Any]:
    """`num_examples`, and the shares whose class is the likeliest (`top1`) and, for more than
    five classes, among the five likeliest (`top5`).
    """
    import numpy as np

    ranks = (1, 5) if loaded.weights.num_classes > 5 else (1,)
    correct, count = dict.fromkeys(ranks, 0), 0
    for batch in common.progress(dataset, len(dataset), "evaluating"):
        real = batch["mask"] > 0
        labels = batch["label"][real].argmax(axis=-1)
        best = np.argsort(-loaded.logits(batch["image"])[real], axis=-1, kind="stable")
        count += len(labels)
        for rank in ranks:
            correct[rank] += int((best[:, :rank] == labels[:, None]).sum())
    return {"num_examples": count} | {f"top{rank}": correct[rank] / count for rank in ranks}


def _dataset(args: argparse.Namespace, loaded: "LoadedModel") -> "TestDataset":
    from vit_jax.input_pipeline import loader, sources

    source = (
        sources.FolderSource(os.path.join(args.dataset, args.split))
        if os.path.isdir(args.dataset)
        else sources.TfdsSource(args.dataset, args.split, args.tfds_data_dir)
    )
    if source.num_classes != loaded.weights.num_classes:
        raise UserError(
            f"{args.model_path!r} tells {loaded.weights.num_classes} classes apart, the dataset "
            f"{args.dataset!r} has {source.num_classes}: evaluate on the classes it was trained on"
        )
    return loader.TestDataset(source, loaded.prepare, batch_size=args.batch)

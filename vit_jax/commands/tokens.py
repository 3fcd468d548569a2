"""Show how much alike a model's tokens become, layer by layer.

MODEL is the workdir of a training run, or a checkpoint of any format that `vit-jax convert` reads;
it needs no head. Images are files, folders with their subfolders, text files (.txt, .lst, .list) of
paths, or `-` for paths on standard input.

For each block, the mean absolute cosine between two different tokens of an image, over all images:
0 where all tokens are orthogonal, 1 where they have become the same but for their lengths.
"""

import argparse
from typing import TYPE_CHECKING

from vit_jax.commands import common
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.inference import Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, lists, or -")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="images at once (16)")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.batch < 1:
        raise UserError(f"--batch must be at least 1; got {args.batch}")

    from vit_jax.input_pipeline.inputs import image_paths

    paths = image_paths(args.images)
    found = over_files(_weights(args), paths, args.batch)
    if args.json:
        blocks = [{"block": name, "similarity": value} for name, value in found.items()]
        common.print_json({"images": len(paths), "blocks": blocks})
        return
    rows = [(name, f"{value:.4f}") for name, value in found.items()]
    common.print_table(("block", ">similarity"), rows)


def over_files(weights: "Weights", paths: list[str], batch: int) -> dict[str, float]:
    """The mean similarity over image files, by the path of each block, in order of depth."""
    import jax
    import numpy as np

    from vit_jax import inference
    from vit_jax.checkpoint.io import unscanned
    from vit_jax.evaluate.similarity import similarity_by_depth
    from vit_jax.models import from_config

    known = weights.model
    if known.flexible is not None:
        raise UserError(
            f"{known.name} has as many tokens as an image has patches, and is filled up to the "
            "length of a batch: its tokens are not compared"
        )
    model = from_config(unscanned(known.config), num_classes=known.num_classes)
    loaded = inference.LoadedModel(weights, model, weights.one_by_one())
    forward = jax.jit(lambda variables, images: similarity_by_depth(model, variables, images))
    totals: dict[str, float] = {}
    size = min(batch, len(paths))
    starts = range(0, len(paths), size)
    for start in common.progress(starts, len(starts), "comparing"):
        group = paths[start : start + size]
        images = np.stack([loaded.read_image(path) for path in group])
        padded = np.concatenate([images, np.zeros((size - len(group), *images.shape[1:]))])
        for name, values in forward(loaded.variables, padded.astype(np.float32)).items():
            values = np.asarray(values[: len(group)], np.float64)
            totals[name] = totals.get(name, 0.0) + float(values.sum())
    return {name: total / len(paths) for name, total in totals.items()}


def _weights(args: argparse.Namespace) -> "Weights":
    from vit_jax import inference

    return inference.load_weights(
        common.checkpoint(args.model_path, args.checkpoint),
        args.model,
        part=args.part,
        image_size=args.image_size,
        allow=args.allow,
    )

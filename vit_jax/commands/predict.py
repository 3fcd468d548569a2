"""Predict the classes of images.

MODEL is the workdir of a training run, an official-style .npz, or a .safetensors that vit-jax
wrote.
"""

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from vit_jax.inference import LoadedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG or PNG files, …")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes an image (5)")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise UserError(f"--top must be at least 1; got {args.top}")
    for image in args.images:  # cheap, so before the model is read
        if not pathlib.Path(image).is_file():
            raise UserError(f"no image file {image!r}")

    loaded = common.load_model(args, common.checkpoint(args.model_path, args.checkpoint))
    predictions = predict(loaded, args.images, args.top)
    if args.json:
        common.print_json(predictions)
        return
    for prediction in predictions:
        rows = [
            (str(row["rank"]), row["name"], f"{row['probability']:.2%}")
            for row in prediction["predictions"]
        ]
        print(prediction["image"])
        common.print_table((">rank", "class", ">probability"), rows)


def predict(loaded: "LoadedModel", images: list[str], top: int) -> list[dict[str, Any]]:
    """The `top` likeliest classes of each image file, likeliest first.

    Every image is read before anything is computed: a bad one is a UserError at once.
    """
    import numpy as np

    batch = np.stack([loaded.read_image(path) for path in images])
    probabilities = loaded.probabilities(batch)
    return [
        {"image": path, "predictions": _ranked(row, top, loaded)}
        for path, row in zip(images, probabilities, strict=True)
    ]


def _ranked(probabilities: "np.ndarray", top: int, loaded: "LoadedModel") -> list[dict[str, Any]]:
    best = (-probabilities).argsort(kind="stable")[:top]
    return [
        {
            "rank": rank,
            "class": int(index),
            "name": loaded.class_name(int(index)),
            "probability": float(probabilities[index]),
        }
        for rank, index in enumerate(best, 1)
    ]

"""Make a dataset ready to train on: TensorFlow Datasets as ArrayRecord, ImageNet's tar files.

NAME is a TensorFlow Datasets name, which is downloaded and written in the format that training
reads at random, or a folder with ImageNet's tar files, whose images are found in them once.
Training does the same when it must; several processes had better find it done.
"""

import argparse
import os

from vit_jax.commands import common
from vit_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a TensorFlow Datasets name, or a folder")
    parser.add_argument("--tfds-data-dir", metavar="DIR", help="where TFDS keeps its datasets")
    parser.add_argument(
        "--tfds-manual-dir", metavar="DIR", help="where files lie that TFDS cannot download"
    )


def run(args: argparse.Namespace) -> None:
    from vit_jax.input_pipeline import imagenet_tar, sources

    if os.path.isfile(args.name):
        raise UserError(f"{args.name} is a file, which needs no preparing")
    if not os.path.isdir(args.name):
        path, splits = sources.prepare(args.name, args.tfds_data_dir, args.tfds_manual_dir)
    elif imagenet_tar.is_imagenet(args.name):
        path = args.name
        splits = {
            split: len(imagenet_tar.ImagenetTarSource(args.name, split))
            for split, tar in (("train", imagenet_tar.TRAIN), ("val", imagenet_tar.VAL))
            if os.path.isfile(os.path.join(args.name, tar))
        }
    else:
        raise UserError(
            f"{args.name} is a folder without ImageNet's {imagenet_tar.TRAIN} or "
            f"{imagenet_tar.VAL}; a folder of images needs no preparing"
        )
    common.print_table(("split", ">examples"), [(k, f"{n:,}") for k, n in splits.items()])
    print(f"ready in {path}")

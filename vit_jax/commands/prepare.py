"""Make a dataset ready to train on: ArrayRecord, which is read at random, or an index of tar files.

NAME is a TensorFlow Datasets name, which is downloaded and written as ArrayRecord; a folder with
ImageNet's tar files, whose images are found in them once; or, with --to, files of samples, which
are WebDataset's shards (.tar), Parquet with embedded images, or what Hugging Face's save_to_disk
wrote.

  vit-jax prepare 'train=shards/in1k-{000..146}.tar' 'validation=shards/val-*.tar' --to data/in1k
  vit-jax prepare imagenet-1k/data --to data/in1k         names of files tell the split
  vit-jax train --config … --config.dataset=data/in1k

Stopped at any time, the same command goes on where it was. Training prepares a TensorFlow Datasets
name itself when it must; several processes had better find it done.
"""

import argparse
import os
import sys

from vit_jax.commands import common
from vit_jax.errors import UserError, some


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="a TensorFlow Datasets name, a folder, or [SPLIT=]PATTERN of files, with {000..146}, "
        "{a,b}, * and ? for parts of names",
    )
    parser.add_argument("--to", metavar="FOLDER", help="where a dataset of files is written")
    parser.add_argument(
        "--image-field",
        metavar="NAME",
        help="column or suffix of the image, where it is not clear",
    )
    parser.add_argument(
        "--label-field",
        metavar="NAME",
        help="column or suffix of the label, where it is not clear; json.NAME in a JSON object",
    )
    parser.add_argument(
        "--captions",
        action="store_true",
        help="take captions in place of labels: the lines of .txt, or a column or an entry of JSON "
        "that is called caption, text or the like",
    )
    parser.add_argument(
        "--caption-field",
        metavar="NAME",
        help="as --captions, from this column, suffix, or entry json.NAME of a JSON object",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="a text file that names the classes, line by line, in place of their numbers",
    )
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with a damaged sample (raise); skip leaves it out, and names it",
    )
    parser.add_argument(
        "--no-decode",
        action="store_true",
        help="do not decode every image to see that it is whole",
    )
    parser.add_argument("--tfds-data-dir", metavar="DIR", help="where TFDS keeps its datasets")
    parser.add_argument(
        "--tfds-manual-dir", metavar="DIR", help="where files lie that TFDS cannot download"
    )


def run(args: argparse.Namespace) -> None:
    from vit_jax.input_pipeline.preparing import inputs

    if args.to is not None or any(map(inputs.is_input, args.names)):
        path, splits = _write(args)
    elif len(args.names) > 1:
        raise UserError(f"one name at a time, or files and --to FOLDER; got {some(args.names)}")
    else:
        path, splits = _prepare(args, args.names[0])
    common.print_table(("split", ">examples"), [(k, f"{n:,}") for k, n in splits.items()])
    print(f"ready in {path}")


def _prepare(args: argparse.Namespace, name: str) -> tuple[str, dict[str, int]]:
    """Prepares what is read where it lies: the folder, and the examples of its splits."""
    from vit_jax.input_pipeline import imagenet_tar, sources

    if os.path.isfile(name):
        raise UserError(f"{name} is a file, which needs no preparing")
    if not os.path.isdir(name):
        return sources.prepare(name, args.tfds_data_dir, args.tfds_manual_dir)
    if not imagenet_tar.is_imagenet(name):
        raise UserError(
            f"{name} is a folder without ImageNet's {imagenet_tar.TRAIN} or "
            f"{imagenet_tar.VAL}; a folder of images needs no preparing"
        )
    splits = {
        split: len(imagenet_tar.ImagenetTarSource(name, split))
        for split, tar in (("train", imagenet_tar.TRAIN), ("val", imagenet_tar.VAL))
        if os.path.isfile(os.path.join(name, tar))
    }
    return name, splits


def _write(args: argparse.Namespace) -> tuple[str, dict[str, int]]:
    """Writes files of samples as ArrayRecord: the folder, and the examples of its splits."""
    from vit_jax.input_pipeline.preparing import inputs, samples, writing

    if args.to is None:
        raise UserError(f"--to FOLDER must say where the dataset of {some(args.names)} is written")
    captions = args.captions or args.caption_field is not None
    if captions and (args.class_names is not None or args.label_field is not None):
        raise UserError(
            "--class-names and --label-field are of labels, in whose place --captions and "
            "--caption-field take captions"
        )
    told = args.caption_field if captions else args.label_field
    fields = samples.Fields(args.image_field, told, captions)
    found = inputs.find(args.names, fields, _class_names(args.class_names))
    written = writing.prepare(
        found, args.to, on_error=args.on_error, decode=not args.no_decode, watch=common.shown
    )
    if damaged := [text for progress in written.values() for text in progress.damaged]:
        print(
            f"{len(damaged)} damaged samples were left out, all of them named in "
            f"{os.path.join(args.to, writing.DESCRIPTION)}: {some(damaged)}",
            file=sys.stderr,
        )
    return args.to, {split: sum(progress.examples) for split, progress in written.items()}


def _class_names(file: str | None) -> list[str] | None:
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as lines:
            return [line.strip() for line in lines.read().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the names of classes in {file}: {error}") from error

"""Convert weights between the official .npz and timm's .safetensors.

SRC is a .npz, a .safetensors that vit-jax wrote, or the workdir of a training run. DST appears
whole or not at all.
"""

import argparse
import pathlib

from vit_jax.errors import UserError

SUFFIXES = {"official": ".npz", "timm": ".safetensors"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", help="weights to read")
    parser.add_argument("dst", metavar="DST", help="file to write")
    parser.add_argument("--to", required=True, choices=SUFFIXES, help="format of DST")
    parser.add_argument("--model", metavar="NAME", help="model in SRC, where the file is not clear")


def run(args: argparse.Namespace) -> None:
    src, dst = pathlib.Path(args.src), pathlib.Path(args.dst)
    if dst.suffix != SUFFIXES[args.to]:
        raise UserError(f"--to {args.to} writes {SUFFIXES[args.to]} files; got DST {args.dst!r}")
    if src.exists() and dst.exists() and src.samefile(dst):
        raise UserError(f"SRC and DST are the same file, {args.dst!r}")

    from vit_jax import inference

    weights = inference.load_weights(src, model=args.model)
    inference.save_weights(dst, weights, args.to)
    print(f"{weights.name}: {weights.num_params:,} parameters written to {dst}")

"""Write a model as one file that runs without vit-jax: StableHLO or ONNX.

MODEL is the workdir of a run or a checkpoint. DST is a file that is not there yet.

  vit-jax export RUN model.stablehlo --to stablehlo   # for CPUs, NVIDIA's GPUs and TPUs
  vit-jax export vit.safetensors vit.onnx --to onnx --raw
  vit-jax export clip/ texts.onnx --to onnx --what text

The file takes any number of examples at once. It is run, and compared with the model, before it
gets its name; what it takes and gives, how images are prepared, the classes and the differences
stand in DST.json beside it. How to run it: docs/export.md.
It needs `pip install "vit-jax[export]"`.
"""

import argparse

from vit_jax.commands import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument("dst", metavar="DST", help="the file to write")
    parser.add_argument("--to", required=True, metavar="stablehlo|onnx", help="format of DST")
    parser.add_argument(
        "--what",
        type=lambda text: text.split(","),
        metavar="KIND,…",
        help="what it gives: logits, features (what the head would get; of two towers the image's "
        "vector), tokens (the patches' after the last norm), text (of two towers the text's) "
        "(logits; without a head features; of two towers features,text)",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="take pixels, uint8 of the model's image size, and normalise them in the file",
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="take N examples at once, and no other number"
    )
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    from vit_jax import export, loaded

    export.check(args.dst, args.to)
    path = common.checkpoint(args.model_path, args.checkpoint)
    model = loaded.load(
        path, args.model, part=args.part, image_size=args.image_size, allow=args.allow
    )
    done = export.export(
        model, args.dst, to=args.to, what=args.what, raw=args.raw, batch=args.batch, source=path
    )
    told = done.description
    if args.json:
        common.print_json(told)
        return
    for x in told["inputs"]:
        print(f"takes     {x['name']} {x['dtype']} [{', '.join(map(str, x['shape']))}]")
    print(f"gives     {', '.join(told['outputs'])}")
    for count, error in done.errors.items():
        print(f"compared  with the model for {count} at once: differs by {error:.1e}")
    print(f"{told['model']['name']}: {told['bytes']:,} bytes written to {args.dst}")

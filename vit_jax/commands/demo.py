"""Train a small Vision Transformer on handwritten digits, from images to a PyTorch checkpoint.

About a minute or two on two CPU cores. Everything is written below --workdir; an interrupted run
goes on where its last checkpoint stands, and a finished one is not trained again.
"""

import argparse
import pathlib
import shutil
import sys

from vit_jax.commands import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", default="runs/digits", metavar="DIR", help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="%(default)s")
    # `--config.total_steps=100` and the like, as for `train`.
    parser.set_defaults(rest=())


def run(args: argparse.Namespace) -> None:
    from vit_jax import inference, main
    from vit_jax.commands.eval import evaluate
    from vit_jax.configs import digits
    from vit_jax.input_pipeline.loader import TestDataset
    from vit_jax.input_pipeline.sources import TfdsSource

    workdir = pathlib.Path(args.workdir)
    data = workdir / "data"
    before = set(workdir.glob("checkpoint_*"))
    main.run(
        [
            f"--config={digits.__file__}",
            f"--workdir={workdir}",
            f"--config.seed={args.seed}",
            f"--config.tfds_data_dir={data}",
            *args.rest,
        ]
    )

    if before == set(workdir.glob("checkpoint_*")):
        print(f"{workdir} holds a finished run; remove it to train again")
    weights = inference.load_weights(workdir)
    official, timm = workdir / "vit_digits.npz", workdir / "vit_digits.safetensors"
    inference.save_weights(official, weights, "official")
    inference.save_weights(timm, weights, "timm")
    images = _write_test_images(workdir / "images", TfdsSource("digits", "test", data))

    # The figure is that of the exported file: the export is part of what the demo shows.
    loaded = inference.load_model(timm)
    test = TestDataset(TfdsSource("digits", "test", data), loaded.prepare, batch_size=360)
    accuracy = evaluate(loaded, test)["top1"]

    common.print_table(
        ("written", "what it is"),
        [
            (f"{workdir}/", "the run: checkpoints, metrics.jsonl, TensorBoard events"),
            (str(official), "the weights as the original code stores them"),
            (str(timm), "the same weights as a timm state dict"),
            (f"{images}/", "ten images of the test split"),
        ],
    )
    # `make demo` runs what lies in an environment that need not be on the path.
    command = "vit-jax" if shutil.which("vit-jax") else sys.argv[0]
    print(
        "try next:\n"
        f"  {command} predict {workdir} {images}/*.png\n"
        f"  {command} convert {official} /tmp/digits.safetensors --to timm\n"
        f"  {command} eval {timm} --dataset digits --tfds-data-dir {data}\n"
    )
    print(f"digits test top-1: {100 * accuracy:.1f} %")


def _write_test_images(folder: pathlib.Path, source) -> pathlib.Path:
    """The first image of every class, as `<class>.png`."""
    folder.mkdir(exist_ok=True)
    seen = set()
    for i in range(len(source)):
        record = source[i]
        if record["label"] not in seen:
            seen.add(record["label"])
            (folder / f"{source.int2str(record['label'])}.png").write_bytes(record["image"])
    return folder

"""Train or fine-tune a model from a config file.

Options that start with `--config.` replace single values of the config:

  vit-jax train --config configs/vit.py:b16,cifar10 --workdir runs/b16 --config.batch=256

`--set FIELD=VALUE` sets a field of the model that the config does not name, too:
--set model.transformer.scan=True.

A recipe that is installed with this package is found by its name: --config=vit:b16,cifar10.

The same as `python -m vit_jax.main`.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE.py[:ARGUMENT]", help="file with get_config()"
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="where checkpoints and metrics go: a folder, or an address such as gs://bucket/run",
    )
    # Documented above; the rest of the arguments reach `args.rest` untouched.
    parser.set_defaults(rest=())


def run(args: argparse.Namespace) -> None:
    from vit_jax import main

    main.run([f"--config={args.config}", f"--workdir={args.workdir}", *args.rest])

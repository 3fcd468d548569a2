"""Draw loss, accuracy and learning rate of training runs, overlaid.

RUN_DIR is the workdir of a run, finished or not.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="workdirs of training runs")
    parser.add_argument(
        "--out", default="run.png", metavar="FILE", help="a .png or .svg (%(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    from vit_jax.evaluate.plot import plot

    plot(args.runs, args.out)
    print(args.out)

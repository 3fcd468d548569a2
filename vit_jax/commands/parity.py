"""Prove that a model of ours computes what timm's, Hugging Face's or another library's does.

Both models get the same weights (random ones if no file is given) and the same images, in float64
and float32: once with the reference's numerics matched to ours, which decides, and once as it
ships. The exit status is 1 if the two differ.
"""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from vit_jax.commands import common
from vit_jax.errors import UserError
from vit_jax.parity.references import REFERENCES

if TYPE_CHECKING:
    from vit_jax.parity import Comparison

DIFFERS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="see `vit-jax models`")
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint or a run (default: random)")
    parser.add_argument(
        "--against",
        choices=tuple(REFERENCES),
        help="the reference (default: what the model's family was proven against, mostly timm)",
    )
    parser.add_argument(
        "--image-size",
        type=common.image_size,
        metavar="N|HxW",
        help="pixels (default: the weights', or model's)",
    )
    parser.add_argument("--images", type=int, default=4, metavar="N", help="random images (4)")
    parser.add_argument("--report", metavar="FILE", help="write a page (.html) of the figures")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.images < 1:
        raise UserError(f"--images must be at least 1; got {args.images}")
    if args.report is not None:
        _require_place(pathlib.Path(args.report))

    from vit_jax.parity import compare, report

    comparison = compare(
        args.model,
        weights=args.weights,
        against=args.against,
        image_size=args.image_size,
        num_images=args.images,
        on_step=_tell,
    )
    if args.report is not None:
        report.write_report(args.report, comparison)
    if args.json:
        common.print_json(comparison.to_dict())
    else:
        _print(comparison, args.report)
    if comparison.verdict != "same":
        raise SystemExit(DIFFERS)


def _tell(step: str) -> None:
    """Prints the current step on a terminal, because a large model takes minutes."""
    if sys.stderr.isatty():
        print(f"… {step}", file=sys.stderr)


def _print(comparison: "Comparison", path: str | None) -> None:
    from vit_jax.parity import report

    print(f"{comparison.model} against {comparison.against}")
    print(report.inputs(comparison))
    columns = (">matched numerics", ">as shipped")
    common.print_table(("logits", *columns), report.figure_rows(comparison))
    common.print_table(("error after, float64", *columns), report.block_errors(comparison))
    for note in comparison.notes:
        print(f"note: {note}")
    if path is not None:
        print(f"report: {path}")
    print(
        report.about_shipped(comparison)
        or f"{comparison.against} as shipped has {report.shipped_otherwise(comparison)}"
    )
    print(f"{comparison.verdict}: {report.conclusion(comparison)}")


def _require_place(path: pathlib.Path) -> None:
    """Raises UserError for a report path that cannot work, before minutes of computing."""
    if path.is_dir():
        raise UserError(f"--report {str(path)!r} is a directory; give a file")
    if not path.parent.is_dir():
        raise UserError(f"--report: no directory {str(path.parent)!r}")

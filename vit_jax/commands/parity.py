"""Prove that a model of ours computes what timm's, Hugging Face's or another library's does.

Both models get the same weights (random ones if no file is given) and the same images, in float64
and float32: once with the reference's numerics matched to ours, which decides, and once as it
ships. If asked for, the gradients of all parameters, steps of training, and the pixels of image
files are compared too. The exit status is 1 if anything that decides differs.
"""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from vit_jax import stores
from vit_jax.commands import common
from vit_jax.errors import UserError
from vit_jax.parity.references import REFERENCES

if TYPE_CHECKING:
    from vit_jax.parity import Comparison
    from vit_jax.parity.training import Recipe

DIFFERS = 1
_DECAY = {"adamw": 0.05, "sgd": 0.0}  # the weight decay of each optimizer, where none is given


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
    parser.add_argument(
        "--gradients", action="store_true", help="compare the gradient of every parameter, float64"
    )
    _add_training(parser)
    parser.add_argument(
        "--preprocess",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="compare the pixels of these files as we, timm and transformers prepare them",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write the figures: a page (.html), .md or .json"
    )
    common.add_json_option(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--train", type=int, metavar="N", help="train both for N steps, float64, and compare"
    )
    group.add_argument("--optimizer", choices=tuple(_DECAY), help="(adamw)")
    group.add_argument("--learning-rate", type=float, metavar="X", help="(0.001)")
    group.add_argument(
        "--weight-decay", type=float, metavar="X", help="(0.05 with adamw, 0 with sgd)"
    )
    group.add_argument("--eps", type=float, metavar="X", help="AdamW's epsilon (1e-8)")
    group.add_argument(
        "--decay",
        choices=("timm", "all"),
        help="what weight decay applies to: as timm does it, not to norms and biases; or all",
    )


def _recipe(args: argparse.Namespace) -> "Recipe | None":
    """What is asked for; UserError for settings of a training that is not."""
    given = {
        field: value
        for field, value in {
            "optimizer": args.optimizer,
            "learning_rate": args.learning_rate,
            "weight_decay": args.weight_decay,
            "eps": args.eps,
            "decayed": args.decay,
        }.items()
        if value is not None
    }
    if args.train is None:
        if given:
            told = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UserError(f"settings of a training were given ({told}); add --train N")
        return None
    if args.optimizer == "sgd" and args.eps is not None:
        raise UserError("--eps is AdamW's; SGD has none: leave it out")
    from vit_jax.parity.training import Recipe

    optimizer = given.get("optimizer", "adamw")
    return Recipe(steps=args.train, **{"weight_decay": _DECAY[optimizer], **given})


def run(args: argparse.Namespace) -> None:
    if args.images < 1:
        raise UserError(f"--images must be at least 1; got {args.images}")
    if args.report is not None and not stores.is_address(args.report):
        _require_place(pathlib.Path(args.report))

    recipe = _recipe(args)
    from vit_jax.parity import compare, report

    comparison = compare(
        args.model,
        weights=args.weights,
        against=args.against,
        image_size=args.image_size,
        num_images=args.images,
        gradients=args.gradients,
        train=recipe,
        preprocess=args.preprocess,
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
    from vit_jax.parity.sections import sections

    print(f"{comparison.model} against {comparison.against}")
    print(report.inputs(comparison))
    columns = (">matched numerics", ">as shipped")
    common.print_table(("logits", *columns), report.figure_rows(comparison))
    common.print_table(("error after, float64", *columns), report.block_errors(comparison))
    for section in sections(comparison):
        print(f"{section.title}:", *section.remarks)
        for columns, rows in section.tables:
            first, *others = columns
            common.print_table((first, *(f">{column}" for column in others)), rows)
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

"""List training runs: their state, their figures, and how their configs differ.

  vit-jax runs runs/

Every run in or below a folder DIR is listed, finished or not.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError, chosen, short

if TYPE_CHECKING:
    from vit_jax.train.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a run's workdir, or one above")
    parser.add_argument(
        "--figure",
        metavar="NAME",
        help="the figure to show (that of a run's keep_best, or accuracy_test)",
    )
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    from vit_jax.train import runs

    found = []
    for path in runs.find(args.folders):
        try:
            found.append(runs.read(path))
        except UserError as error:
            print(f"vit-jax runs: left out: {error}", file=sys.stderr)
    if not found:
        raise UserError("none of the runs could be read")
    _require_known(args.figure, found)
    names = runs.differing(found)
    compared = {one.path: {name: runs.value(one, name) for name in names} for one in found}
    if args.json:
        rows = [
            {
                **dataclasses.asdict(one),
                "figures": {k: figure._asdict() for k, figure in one.figures.items()},
                "config": compared[one.path],
            }
            for one in found
        ]
        common.print_json({"differing": names, "runs": rows})
        return
    _print_states(found, args.figure)
    if names:
        _print_configs(names, compared)
    elif len(found) > 1:
        print("All of them have the same config.")


def _require_known(name: str | None, found: "Sequence[Run]") -> None:
    if name is not None:
        known = {figure: None for one in found for figure in one.figures}
        chosen(name, known, "figure")


def _print_states(found: "Sequence[Run]", name: str | None) -> None:
    rows = []
    for one in found:
        shown = name or one.config.get("keep_best") or "accuracy_test"
        figure = one.figures.get(shown)
        best = f"{figure.best:.4g} at {figure.best_step}" if figure else ""
        last = f"{figure.last:.4g}" if figure else ""
        steps = f"{one.step}/{one.total_steps}"
        rows.append((one.path, one.state, steps, shown if figure else "", last, best))
    common.print_records(("run", "state", ">step", "figure", ">last", ">best"), rows)


def _print_configs(names: Sequence[str], compared: dict[str, dict[str, Any]]) -> None:
    rows = [[path, *map(_text, values.values())] for path, values in compared.items()]
    common.print_records(("run", *names), rows)


def _text(value: Any) -> str:
    return short(str(value))

"""Compile the train step for any TPU slices, without them, and say what it will cost.

  vit-jax plan --config configs/vit_s16_i1k.py --topology v5e:4x4 --set batch=2048

Exactly the step that `vit-jax train` would run, with its shardings, compiled by the TPU's own
compiler. Without --topology: for the devices of this machine.

  vit-jax plan --compare A.json B.json

What differs between two plans that --json printed; nothing is compiled.
"""

import argparse
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from vit_jax.plan.report import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE.py[:ARGUMENT]", help="file with get_config()")
    what.add_argument(
        "--compare", nargs=2, metavar="FILE.json", help="tell the difference of two plans"
    )
    parser.add_argument(
        "--topology", metavar="NAME", help="a TPU slice, such as v5e:16x16, or several: 2*v5e:16x16"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the config, such as batch=4096 or model.transformer.scan=True; repeatable",
    )
    parser.add_argument(
        "--classes", type=int, default=1000, metavar="N", help="classes of the dataset (1000)"
    )
    parser.add_argument(
        "--fit",
        choices=("batch", "chips"),
        help="search accumulation, rematerialisation and fsdp for the largest batch that fits, "
        "doubling config.batch, or the fewest chips of the topology's family",
    )
    parser.add_argument("--chart", metavar="FILE", help="draw cycles and traffic (.png or .svg)")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.compare:
        if args.topology or args.set or args.fit or args.chart:
            raise UserError("--compare reads two finished plans: of other options it takes --json")
        return _compare(*args.compare, as_json=args.json)
    if args.classes < 1:
        raise UserError(f"--classes must be at least 1; got {args.classes}")
    if args.chart is not None:
        from vit_jax.plan import chart

        chart.check(args.chart)
    config, given = _config(args)

    from vit_jax.plan import fit, waiting

    with waiting.terminable():
        if args.fit:
            say = _say(args.json)
            found = fit.search(config, args.topology, args.classes, args.fit, say=say)
            _show(found.plan, args, {"fit": found.to_dict()})
            if not args.json:
                _print_best(args.config, {**given, **found.settings})
        else:
            plan = _plan(config, args)
            _show(plan, args)
            _require_fit(plan)
    return None


def _compare(first: str, second: str, as_json: bool) -> None:
    from vit_jax.plan import compare

    plans = [compare.read(path) for path in (first, second)]
    if as_json:
        return common.print_json(compare.to_dict(*plans))
    for line in compare.changed(*plans) or ["The two are of the same devices, mesh and batch."]:
        print(line)
    columns = (">first", ">second", ">difference", ">ratio")
    common.print_table(
        ("on each device, a step", *columns), [row.cells() for row in compare.rows(*plans)]
    )
    for title, found in (
        ("HBM traffic of a class", compare.class_rows(*plans)),
        ("collective", compare.collective_rows(*plans)),
    ):
        if found:
            common.print_table((title, *columns), [row.cells() for row in found])
    return None


def _plan(config: "ConfigDict", args: argparse.Namespace) -> "Plan":
    from vit_jax.plan import compiling, topology

    step = compiling.lower(config, topology.devices(args.topology), args.classes)
    return compiling.compile_step(step, config, args.topology)


def _show(plan: "Plan", args: argparse.Namespace, extra: dict[str, Any] | None = None) -> None:
    if args.chart is not None:
        from vit_jax.plan import chart

        chart.draw(plan, args.chart)
    if args.json:
        common.print_json({**plan.to_dict(), **(extra or {})})
    else:
        _print(plan)


def _require_fit(plan: "Plan") -> None:
    if plan.fits is False:
        from vit_jax.plan import compiling

        over = plan.memory.total - (plan.limit or 0)
        raise UserError(f"the step does not fit: {over / 1e9:.2f} GB too much. {compiling.ADVICE}")


def _config(args: argparse.Namespace) -> "tuple[ConfigDict, dict[str, Any]]":
    """The complete config, with what `--set` changed, and these changes."""
    from vit_jax import main
    from vit_jax.configs import common as defaults
    from vit_jax.overrides import overridden

    recipe, _ = main.parse([f"--config={args.config}", "--workdir=-"])
    config, given = overridden(recipe, args.set)
    return defaults.with_defaults(config), given


def _say(quiet: bool) -> Callable[[str, bool], None]:
    """A function that prints each try of the search, on stderr if stdout is for JSON."""
    file = sys.stderr if quiet else sys.stdout
    return lambda text, ends: print(text, end="\n" if ends else "", file=file, flush=True)


def _print_best(file: str, settings: Mapping[str, Any]) -> None:
    """Prints the settings as a `vit-jax train` command."""
    flags = [f"--set {shlex.quote(f'{field}={value}')}" for field, value in settings.items()]
    print(" ".join(["best: vit-jax train", f"--config={file}", "--workdir=DIR", *flags]))


def _print(plan: "Plan") -> None:
    from vit_jax.plan import report

    for line in report.lines(plan):
        print(line)
    common.print_table(*report.class_table(plan))
    if plan.traffic.collectives:
        common.print_table(("collective", ">count", ">MB a device"), report.collective_rows(plan))
    for note in report.caveats(plan):
        print(textwrap.fill(f"note: {note}", width=100, subsequent_indent="      "))

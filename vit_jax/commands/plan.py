"""Compile the train step for any TPU slice, without one, and say what it will cost.

  vit-jax plan --config configs/vit_s16_i1k.py --topology v5e:4x4 --set batch=2048

Exactly the step that `vit-jax train` would run, with its shardings, compiled by the TPU's own
compiler. Without --topology: for the devices of this machine.
"""

import argparse
import ast
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from vit_jax.plan.report import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE.py[:ARGUMENT]", help="file with get_config()"
    )
    parser.add_argument("--topology", metavar="NAME", help="a TPU slice, such as v5e:16x16")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the config, such as batch=4096 or model.transformer.scan=True; repeatable",
    )
    parser.add_argument(
        "--classes", type=int, default=1000, metavar="N", help="of the dataset (1000)"
    )
    parser.add_argument(
        "--fit",
        choices=("batch", "chips"),
        help="search accumulation, rematerialisation and fsdp for the largest batch, or the fewest "
        "chips of the topology's family, that fit",
    )
    parser.add_argument("--chart", metavar="FILE", help="draw cycles and traffic (.png or .svg)")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.classes < 1:
        raise UserError(f"--classes must be at least 1; got {args.classes}")
    if args.chart is not None:
        from vit_jax.plan import chart

        chart.check(args.chart)
    config = _config(args)

    from vit_jax.plan import compiling, fit, topology

    if args.fit:
        plan = fit.search(config, args.topology, args.classes, args.fit, say=_say(args.json))
    else:
        devices = topology.devices(args.topology)
        step = compiling.lower(config, devices, args.classes)
        plan = compiling.compile_step(step, config, args.topology)
    if args.chart is not None:
        chart.draw(plan, args.chart)
    if args.json:
        common.print_json(plan.to_dict())
    else:
        _print(plan)
    if plan.fits is False:
        raise UserError(
            f"the step does not fit: {(plan.memory.total - (plan.chip.hbm_bytes or 0)) / 1e9:.2f} "
            "GB too much; --fit tries what may help"
        )


def _config(args: argparse.Namespace) -> "ConfigDict":
    from vit_jax import main
    from vit_jax.configs import common as defaults

    config, _ = main.parse([f"--config={args.config}", "--workdir=-"])
    config = config.copy_and_resolve_references().unlock()
    for setting in args.set:
        field, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting!r}: expected FIELD=VALUE")
        _set(config, field.removeprefix("config."), value)
    return defaults.with_defaults(config)


def _set(config: Any, field: str, value: str) -> None:
    """Fields that no config has are found out by `with_defaults`, or by the model."""
    *path, name = field.split(".")
    for part in path:
        if part not in config:
            raise UserError(f"--set {field}: config has no field {part!r}")
        config = config[part]
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    before = config.get(name)
    config[name] = float(parsed) if isinstance(before, float) and parsed is not None else parsed


def _say(quiet: bool):
    import sys

    return lambda line: print(line, file=sys.stderr if quiet else sys.stdout, flush=True)


def _print(plan: "Plan") -> None:
    from vit_jax.plan import report

    for line in report.lines(plan):
        print(line)
    columns = ("class", ">count", ">GB", ">1000 cycles")
    common.print_table(columns, report.class_rows(plan))
    if plan.traffic.collectives:
        common.print_table(("collective", ">count", ">MB a device"), report.collective_rows(plan))
    for note in report.caveats(plan):
        print(f"note: {note}")

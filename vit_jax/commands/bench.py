"""Measure forward passes or training steps, against timm in the same run.

  vit-jax bench ViT-S_16 ViT-B_16 --mode train --batch 8 --against timm

Ours and theirs take turns in one process; medians, with the least and the most beside them. On a
GPU: --dtype bfloat16 --against timm-compiled.

--history FILE keeps what was measured, and says whether it is slower than before or noise;
--fail-if-slower ends with status 1 then.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from typing import TYPE_CHECKING, Any

from vit_jax.commands import common
from vit_jax.errors import Status, UserError

if TYPE_CHECKING:
    from vit_jax.bench.history import Verdict
    from vit_jax.bench.measuring import Timing

PEERS = ("timm", "timm-compiled", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", default=["ViT-B_16"], metavar="MODEL")
    parser.add_argument("--mode", choices=("forward", "train"), default="forward")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images (8)")
    parser.add_argument("--image-size", type=int, default=224, metavar="N", help="pixels (224)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attend", default="auto", metavar="NAME", help="as config.attend (auto)")
    parser.add_argument("--against", choices=PEERS, default="timm", help="the peer (timm)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="timed (10)")
    parser.add_argument("--history", metavar="FILE.jsonl", help="compare with it, and add to it")
    parser.add_argument(
        "--fail-if-slower", action="store_true", help="status 1 on a regression against --history"
    )
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    common.add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    for name in ("batch", "image_size", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if args.fail_if_slower and not args.history:
        raise UserError("--fail-if-slower needs --history FILE, which says how fast it was")
    from vit_jax.bench import history

    earlier = history.read(args.history) if args.history else []
    # Both frameworks share the card's memory. JAX reads this when it first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from vit_jax.devices import allocator
    from vit_jax.layers.attention import choice

    allocator.keep_memory()  # as `vit-jax train` does; the peer's memory comes from there too
    choice.check(args.attend)
    measured = {name: _measure(name, args) for name in args.models}
    verdicts = _kept(args, measured, earlier) if args.history else {}
    _show(args, measured, verdicts)
    if args.fail_if_slower and any(verdict.slower for verdict in verdicts.values()):
        raise SystemExit(Status.FAILED)


def _kept(
    args: argparse.Namespace,
    measured: "dict[str, list[Timing]]",
    earlier: list[dict[str, Any]],
) -> "dict[str, Verdict]":
    """How each model's speed compares with the file's; the file then has the new ones too."""
    from vit_jax.bench import history

    shape = ("mode", "batch", "image_size", "dtype", "attend", "against")
    about = {key: getattr(args, key) for key in shape}
    about |= {"machine": platform.node(), "device": _about()["device"]}
    new = {
        name: history.entry(
            about | {"model": name}, timings[0].seconds, [s for t in timings[1:] for s in t.seconds]
        )
        for name, timings in measured.items()
    }
    when = {key: _about()[key] for key in ("date", "versions")}
    dated = [{**found, **when} for found in new.values()]
    history.append(args.history, dated)
    return {name: history.judge(found, earlier) for name, found in new.items()}


def _show(
    args: argparse.Namespace,
    measured: "dict[str, list[Timing]]",
    verdicts: "dict[str, Verdict]",
) -> None:
    if args.json:
        results = [
            {**_result(name, timings), "history": verdicts[name]._asdict()}
            if name in verdicts
            else _result(name, timings)
            for name, timings in measured.items()
        ]
        common.print_json({**_about(), "results": results})
        return
    rows = [row for name, timings in measured.items() for row in _rows(name, timings)]
    columns = ("model", "who", ">ms", ">range", ">images/s", ">of peer", ">utilisation", ">memory")
    if args.markdown:
        _print_markdown(columns, rows)
    else:
        common.print_table(columns, rows)
    about = _about()
    print(f"{about['date']}, {about['device']}, {about['versions']}: {about['command']}")
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict.text}")


def _measure(name: str, args: argparse.Namespace) -> "list[Timing]":
    import dataclasses

    import jax

    from vit_jax import models
    from vit_jax.bench import measuring, ours, theirs
    from vit_jax.evaluate import flops

    shape = (name, args.mode, args.batch, args.image_size, args.dtype)
    subjects = [ours.subject(*shape, args.attend)]
    if args.against != "none":
        subjects.append(theirs.subject(*shape, compiled=args.against == "timm-compiled"))
    timings = measuring.in_turns(subjects, args.batch, args.rounds)
    model = models.get_model(name, num_classes=1000)
    work = flops.train_flops(model, args.image_size)
    if work is not None and args.mode == "forward":
        work /= 3  # A training step costs three forward passes.
    kind = jax.devices()[0].device_kind
    return [
        dataclasses.replace(
            timing, utilisation=flops.utilisation(timing.images_per_second, work, kind, 1)
        )
        for timing in timings
    ]


def _rows(name: str, timings: "list[Timing]") -> "list[tuple[str, ...]]":
    peer = timings[-1].images_per_second
    return [
        (
            name,
            timing.name,
            f"{1e3 * timing.median:,.0f}",
            f"{1e3 * min(timing.seconds):,.0f}–{1e3 * max(timing.seconds):,.0f}",
            f"{timing.images_per_second:,.2f}",
            f"{timing.images_per_second / peer:.2f}",
            "" if timing.utilisation is None else f"{timing.utilisation:.0%}",
            "" if timing.peak_memory is None else f"{timing.peak_memory / 1e9:.2f} GB",
        )
        for timing in timings
    ]


def _print_markdown(columns: tuple[str, ...], rows: "list[tuple[str, ...]]") -> None:
    print("| " + " | ".join(name.removeprefix(">") for name in columns) + " |")
    print("|" + "|".join("--:" if name.startswith(">") else "--" for name in columns) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def _result(name: str, timings: "list[Timing]") -> dict[str, Any]:
    return {"model": name, "timings": [timing.to_dict() for timing in timings]}


def _about() -> dict[str, str]:
    import jax

    packages = ("jax", "flax", "torch", "timm")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0].device_kind
    if device == "cpu":
        device = f"CPU {platform.machine()}, {os.cpu_count()} cores"
    return {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "versions": ", ".join(versions),
        "command": shlex.join(["vit-jax", *sys.argv[1:]]),
    }

"""`vit-jax eval --watch`: evaluates the checkpoints of a run as they appear."""

import argparse
from typing import Any

from vit_jax.commands import probe
from vit_jax.errors import UserError

# What says something about one checkpoint, which a run that is watched has not.
_OF_ONE = ("checkpoint", "model", "part", "image_size", "allow", "json")
_FIELDS = ("dataset", "split", "by_position")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("watching a run")
    group.add_argument(
        "--watch", action="store_true", help="evaluate the checkpoints of the run as they appear"
    )
    group.add_argument(
        "--name", metavar="NAME", help="what the figures of --dataset are called (the kind)"
    )
    group.add_argument(
        "--patience",
        type=float,
        metavar="MINUTES",
        help="end after so long without a new checkpoint (no limit)",
    )


def check(args: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    if not args.watch:
        for name in ("name", "patience"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} goes with --watch")
        return
    for name in _OF_ONE:
        if getattr(args, name):
            raise UserError(f"--{name.replace('_', '-')} does not go with --watch")
    if args.name is not None and args.dataset is None:
        raise UserError("--name goes with --dataset: the run's own evaluations have names")
    if args.patience is not None and not args.patience > 0:
        raise UserError(f"--patience must be above 0; got {args.patience:g}")


def run(args: argparse.Namespace) -> None:
    """Watches until the run has ended.

    Raises:
      UserError: as `watching.watch`.
    """
    from vit_jax.devices import compilation_cache
    from vit_jax.evaluate.watching import watch

    compilation_cache.enable()
    changes: dict[str, Any] = {}
    if args.tfds_data_dir is not None:
        changes["tfds_data_dir"] = args.tfds_data_dir
    if args.on_error == "skip":
        changes["data"] = {"on_error": "skip"}
    watch(
        args.model_path,
        _entries(args),
        changes=changes,
        patience=None if args.patience is None else 60 * args.patience,
        say=lambda text: print(text, flush=True),
    )


def _entries(args: argparse.Namespace) -> dict[str, dict[str, Any]] | None:
    """The evaluation that the options describe, as an entry of `config.evals`."""
    if args.dataset is None:
        return None
    kind = args.probe or "accuracy"
    entry = {"kind": kind, **{field: getattr(args, field) for field in _FIELDS}}
    if args.probe:
        entry |= {field: getattr(args, field) for field in probe.options(kind)}
    else:
        entry["real_labels"] = args.real_labels
    if entry.get("l2") is not None:
        entry["l2"] = probe.numbers(entry["l2"])
    return {args.name or kind: {k: v for k, v in entry.items() if v is not None}}

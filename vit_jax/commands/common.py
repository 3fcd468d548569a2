"""What commands share: arguments, tables for people, JSON for programs, progress on stderr."""

import argparse
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from vit_jax import json_text, stores, waiting
from vit_jax.errors import UserError, some

if TYPE_CHECKING:
    from vit_jax.inference import LoadedModel

T = TypeVar("T")

# How files of weights are called.
_WEIGHTS = (".npz", ".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".msgpack", ".index.json")
_UNLIMITED = 10_000  # columns: a file or a pipe has no right edge to fold at


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_path", metavar="MODEL", help="a run's workdir or a checkpoint file")
    parser.add_argument("--model", metavar="NAME", help="model in the file, where it is not clear")
    add_checkpoint_option(parser)
    add_part_option(parser)
    add_source_size_option(parser)
    add_allow_option(parser)


def load_model(args: argparse.Namespace, path: str) -> "LoadedModel":
    """The model that the arguments of `add_model_arguments` mean."""
    from vit_jax import inference

    loaded = inference.load_model(
        path, args.model, part=args.part, image_size=args.image_size, allow=args.allow
    )
    warn_of_zero_head(loaded)
    return loaded


def add_part_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--part",
        metavar="NAME",
        help="which set of weights, where a file holds several, such as model_ema; of two towers "
        "img or txt",
    )


def add_allow_option(parser: argparse.ArgumentParser) -> None:
    from vit_jax import allow

    known = "; ".join(f"{name}, {what}" for name, what in allow.KNOWN.items())
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=tuple(allow.KNOWN),
        help=f"what is no error: {known}",
    )


def add_source_size_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="N|HxW",
        help="pixels that the weights are for, where nothing in the file tells it (oblong images)",
    )


def warn_of_zero_head(loaded: Any) -> None:
    """Says on stderr that a head of zeros tells no classes apart."""
    if loaded.head_is_zero:
        print(
            "warning: every number of the head is zero: all classes are equally likely, and the "
            "first one is no prediction. The head was never trained, or it was left out",
            file=sys.stderr,
        )


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=_checkpoint,
        metavar="best|newest|STEP",
        help="which one of a run's (newest); best is that of config.keep_best",
    )


def checkpoint(path: str, chosen: str | int | None) -> str:
    """The path of the checkpoint to read: the chosen one of a run, or `path` itself.

    If a run offers several, a line on stderr says which checkpoint was taken.

    Raises:
      UserError: if the run does not have the chosen checkpoint, or if one was chosen and `path` is
        not a run.
    """
    if chosen is None and not _is_run(path):
        return path

    from vit_jax.train import checkpointing, run_info

    keep_best = run_info.load(path).config.get("keep_best")
    steps, best = checkpointing.stored_steps(path, keep_best)
    if not steps or (chosen is None and best in (None, steps[-1])):
        return path
    if chosen == "best" and best is None:
        raise UserError(
            f"{path} kept no best checkpoint: --config.keep_best={keep_best}; it has steps {steps}"
        )
    step = {"best": best, "newest": steps[-1], None: steps[-1]}.get(chosen, chosen)
    if step not in steps:
        raise UserError(f"{path} has no checkpoint of step {step}; it has {steps}")
    names = [name for name, of in (("newest", steps[-1]), ("best", best)) if of == step]
    others = "" if best in (None, step) else f"; the best is that of step {best}, --checkpoint=best"
    called = f", the {' and the '.join(names)}" if names else ""
    print(f"{path}: checkpoint of step {step}{called}{others}", file=sys.stderr)
    return stores.join(path, f"checkpoint_{step}")


def _is_run(path: str) -> bool:
    """Whether this is the workdir of a run. No store is asked about what is called as a file."""
    a_file = path.startswith(("http:", "https:", "hf:")) or path.endswith(_WEIGHTS)
    return not (stores.is_address(path) and a_file) and stores.is_file(
        stores.join(path, "run.json")
    )


def _checkpoint(text: str) -> str | int:
    """An argument: 'best', 'newest' or a step."""
    if text not in ("best", "newest") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected best, newest or a step; got {text!r}")
    return int(text) if text.isdecimal() else text


def image_size(text: str) -> tuple[int, int]:
    """An argument: '224' or '160x256', height first."""
    match = re.fullmatch(r"([1-9]\d*)(?:[x×]([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected pixels such as 224, or height x width such as 160x256; got {text!r}"
        )
    return int(match[1]), int(match[2] or match[1])


def skipped(args: argparse.Namespace, names: Sequence[str]) -> dict[str, int]:
    """`num_skipped`, the number of damaged images, if they were to be skipped.

    A line on stderr names the first of them.
    """
    if args.on_error != "skip":
        return {}
    if names:
        print(f"{len(names)} damaged images were skipped: {some(names)}", file=sys.stderr)
    return {"num_skipped": len(names)}


def print_json(value: Any) -> None:
    """A number that is NaN or infinite, which JSON does not know, becomes null."""
    print(json_text.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints to stdout; a column whose name starts with `>` holds numbers, set to the right."""
    import rich.box
    import rich.table
    import rich.text

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(
            name.removeprefix(">"),
            justify="right" if name.startswith(">") else "left",
            overflow="fold",
        )
    for row in rows:
        # Text, not str: rich would read [brackets] in a class's name as markup.
        table.add_row(*map(rich.text.Text, row))
    console = waiting.console(width=None if sys.stdout.isatty() else _UNLIMITED)
    with console.capture() as rendered:
        console.print(table)
    # Not printed by rich, which answers a broken pipe with an exit status of its own.
    print(rendered.get(), end="")


def print_records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, or a list of each row's entries where the terminal is too narrow for it.

    The first entry of a row names it; entries that are empty are left out of a list.
    """
    names = [name.removeprefix(">") for name in columns]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    table = sum(widths) + 3 * len(widths)
    if not sys.stdout.isatty() or table <= shutil.get_terminal_size().columns:
        print_table(columns, rows)
        return
    for row in rows:
        print(row[0])
        for name, entry in zip(names[1:], row[1:], strict=True):
            if entry:
                print(f"  {name}: {entry}")
    print()


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a bar on stderr when that is a terminal."""
    import rich.progress

    console = waiting.console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield from bar.track(items, total=total, description=what)


def shown(items: Iterable[T], total: int, what: str, of: str = "samples") -> Iterator[T]:
    """The items, with a bar on a terminal, and elsewhere a line after each tenth of them."""
    if sys.stderr.isatty():
        yield from progress(items, total, what)
        return
    for number, item in enumerate(items, start=1):
        yield item
        if number * 10 // total > (number - 1) * 10 // total:
            print(f"{what}: {number:,} of {total:,} {of}", file=sys.stderr, flush=True)


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Who the other processes are, for a command that several run together."""
    group = parser.add_argument_group(
        "several processes",
        "the same command in each; a TPU slice, Slurm, Open MPI and Kubernetes say who the others "
        "are, elsewhere these do",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, any free port")
    group.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process_id", type=int, metavar="I", help="the number of this one, from 0")
    group.add_argument(
        "--heartbeat_timeout",
        type=float,
        metavar="SECONDS",
        help="so long may another process give no sign of life (100)",
    )


def join_processes(args: argparse.Namespace) -> None:
    """Joins the others that the arguments of `add_process_options` name, before JAX is used."""
    from vit_jax.devices import distributed, peers

    distributed.initialize(
        args.coordinator,
        args.num_processes,
        args.process_id,
        heartbeat_timeout=args.heartbeat_timeout or peers.HEARTBEAT_TIMEOUT,
    )

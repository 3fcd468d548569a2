"""`vit-jax <command>` runs a command, and turns bad input into one message.

To add a command, write `vit_jax/commands/<name>.py` and add its name to `COMMANDS`.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn

from vit_jax import __version__
from vit_jax.devices import allocator
from vit_jax.errors import Diverged, Preempted, Status, UserError, suggest

COMMANDS = (
    "train",
    "prepare",
    "eval",
    "predict",
    "embed",
    "probe",
    "nearest",
    "zeroshot",
    "tokens",
    "attention",
    "plot",
    "runs",
    "inspect",
    "convert",
    "export",
    "parity",
    "models",
    "plan",
    "bench",
    "demo",
)

BAD_INPUT = Status.BAD_INPUT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: The words after `vit-jax`; those of this process if None.

    Returns:
      The exit status, see `vit_jax.errors.Status`; a status other than 0 comes after one line on
      stderr that says why.
    """
    if argv is None:
        allocator.own_process()
    return guarded(lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def guarded(action: Callable[[], object], prog: str = "vit-jax") -> int:
    """The exit status of `action`, as `main` describes it, with no traceback for bad input."""
    try:
        action()
        print(end="", flush=True)  # here, where a broken pipe is caught
    except UserError as error:
        return _fail(str(error), prog)
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it something that takes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.BROKEN_PIPE
    except OSError as error:
        # A full disk, a file without permission: the user's to mend, whichever line met it.
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}", prog)
    except (Diverged, Preempted) as stop:
        print(f"{prog}: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt as stop:
        print(": ".join([prog, "interrupted", *map(str, stop.args)]), file=sys.stderr)
        return Status.INTERRUPTED
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    return Status.DONE


def _run(argv: list[str]) -> None:
    if not argv:
        _parser().print_help()
        raise UserError(f"a command is needed: one of {', '.join(COMMANDS)}")
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UserError(
            f"unknown command {argv[0]!r}.{suggest(argv[0], COMMANDS)} "
            "`vit-jax --help` lists them all."
        )
    args = _parser().parse_args(argv)
    args.run(args)


def _fail(message: str, prog: str) -> int:
    print(f"{prog}: error: {message}", file=sys.stderr)
    return BAD_INPUT


class _Parser(argparse.ArgumentParser):
    """Reports bad arguments as every other bad input is reported, and knows close options."""

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore
        """Keeps unknown arguments only for a command that declares `rest`."""
        self._given = [] if args is None else list(args)
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown and "rest" in namespace:
            namespace.rest = unknown
        elif unknown:
            self.error(f"unknown argument {unknown[0]!r}.{self._meant(unknown[0])}")
        return namespace, []

    def error(self, message: str) -> NoReturn:
        if "required" in message:  # what is missing may stand there misspelt
            for argument in self._given:
                if hint := self._meant(argument):
                    message += f"; {argument!r} is unknown.{hint}"
        end = "" if message.endswith((".", "?")) else "."
        raise UserError(f"{message}{end} See `{self.prog} --help`.")

    def _meant(self, argument: str) -> str:
        """A hint for an argument that is none of the options but close to one, or ''."""
        option = argument.partition("=")[0]
        options = re.findall(r"--[\w-]+", self.format_help())
        known = not option.startswith("--") or option in options
        return "" if known else suggest(option, options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vit-jax",
        description="Vision Transformers in JAX: train, evaluate, predict, convert.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vit-jax {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        _add_command(subparsers, name, importlib.import_module(f"vit_jax.commands.{name}"))
    return parser


def _add_command(subparsers, name: str, command: ModuleType) -> None:
    text = command.__doc__ or ""
    parser = subparsers.add_parser(
        name,
        help=text.partition("\n")[0].rstrip("."),
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)


if __name__ == "__main__":
    sys.exit(main())

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
from vit_jax.errors import Preempted, UserError, suggest

COMMANDS = (
    "train",
    "prepare",
    "eval",
    "predict",
    "plot",
    "inspect",
    "convert",
    "parity",
    "models",
    "plan",
    "bench",
    "demo",
)

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PREEMPTED = 143  # 128 + SIGTERM: a saved run, to be started again
BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: The words after `vit-jax`; those of this process if None.

    Returns:
      The exit status: 0; 2 for bad input, after one line on stderr; 130 when interrupted;
      141 when the reader of the output went away.
    """
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
        return BROKEN_PIPE
    except OSError as error:
        # A full disk, a file without permission: the user's to mend, whichever line met it.
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}", prog)
    except Preempted as stop:
        print(f"{prog}: {stop}", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    return 0


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
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown and "rest" in namespace:
            namespace.rest = unknown
        elif unknown:
            options = re.findall(r"--[\w-]+", self.format_help())
            hint = suggest(unknown[0].partition("=")[0], options)
            self.error(f"unknown argument {unknown[0]!r}.{hint}")
        return namespace, []

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith((".", "?")) else "."
        raise UserError(f"{message}{end} See `{self.prog} --help`.")


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

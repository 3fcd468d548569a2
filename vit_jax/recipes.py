"""The recipe that `--config` names: a file, or one that is installed with this package."""

import ast
import pathlib
import sys
from collections.abc import Sequence

from vit_jax.errors import UserError, suggest

_NOT_RECIPES = ("__init__", "common", "models")


def with_recipe(argv: Sequence[str]) -> list[str]:
    """The command line `argv` with the value of `--config` as `find` returns it."""
    found = list(argv)
    for i, word in enumerate(found):
        flag, equals, value = word.partition("=")
        if flag.lstrip("-") != "config" or not flag.startswith("-"):
            continue
        if equals:
            found[i] = f"{flag}={find(value)}"
        elif i + 1 < len(found):
            found[i + 1] = find(found[i + 1])
    return found


def find(config: str) -> str:
    """FILE[:ARGUMENT] of an existing file.

    A file that exists is meant. Otherwise `vit.py`, `vit` and `configs/vit.py` mean the recipe of
    that name which is installed with this package.

    Raises:
      UserError: if there is neither, or if the recipe's `get_config` needs an argument and has
        none, or has one and takes none.
    """
    path, colon, argument = config.partition(":")
    if argument.startswith("//"):  # an address, which whoever loads it can read or not
        return config
    if not pathlib.Path(path).is_file():
        path = _installed_path(path)
    _check_argument(path, argument if colon else None)
    return f"{path}{colon}{argument}"


def installed() -> dict[str, pathlib.Path]:
    """The file of every recipe that is installed with this package, by its name."""
    from vit_jax import configs

    files = pathlib.Path(*configs.__path__).glob("*.py")
    return {file.stem: file for file in sorted(files) if file.stem not in _NOT_RECIPES}


def _installed_path(path: str) -> str:
    parts, recipes = pathlib.PurePath(path), installed()
    plain = str(parts.parent) in (".", "configs") and parts.suffix in ("", ".py")
    if plain and parts.stem in recipes:
        # It is said, because a file of that name in another folder may have been meant.
        print(f"recipe: {recipes[parts.stem]}, installed with vit_jax", file=sys.stderr)
        return str(recipes[parts.stem])
    raise UserError(
        f"--config: there is no file {path!r}, and no installed recipe of that name."
        f"{suggest(parts.stem, recipes)} Installed: {', '.join(recipes)}"
    )


def _check_argument(path: str, argument: str | None) -> None:
    function = _get_config(path)
    if function is None:  # Whoever loads the file says what is wrong with it.
        return
    names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
    if argument is None and len(names) > len(function.args.defaults):
        what = " ".join((ast.get_docstring(function) or "").split())
        raise UserError(f"{path} needs an argument, --config={path}:{names[0].upper()}. {what}")
    if argument is not None and not names and function.args.vararg is None:
        raise UserError(f"{path} takes no argument; got {argument!r}")


def _get_config(path: str) -> ast.FunctionDef | None:
    """The definition of the recipe's function, read without running the file."""
    try:
        body = ast.parse(pathlib.Path(path).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    found = [x for x in body if isinstance(x, ast.FunctionDef) and x.name == "get_config"]
    return found[-1] if found else None

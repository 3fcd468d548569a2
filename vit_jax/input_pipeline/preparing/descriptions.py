"""The small files in which `vit-jax prepare` keeps what it knows of a dataset."""

import json
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from vit_jax.errors import UserError

T = TypeVar("T")


def load(kind: type[T], path: str) -> T:
    """What `save` wrote of the fields of a data class.

    Raises:
      UserError: if it cannot be read, or holds other fields.
    """
    try:
        return kind(**read(path))
    except TypeError as error:
        raise UserError(f"cannot read {path}, which vit-jax prepare wrote: {error}") from error


def read(path: str) -> dict[str, Any]:
    """What `save` wrote.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}, which vit-jax prepare wrote: {error}") from error


def save(path: str, content: Mapping[str, Any]) -> None:
    """Writes a description under another name, and renames it."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
    os.replace(temporary, path)

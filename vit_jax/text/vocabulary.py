"""Reads the file of a vocabulary."""

import importlib
from typing import TYPE_CHECKING, Any

from vit_jax import stores
from vit_jax.errors import UserError

if TYPE_CHECKING:
    import tokenizers


def read(location: str) -> bytes:
    """The content of a vocabulary's file, which is downloaded once where `location` is an address.

    Raises:
      UserError: if it cannot be had, or is empty.
    """
    from vit_jax.checkpoint.files.fetch import fetch

    try:
        content = stores.read_bytes(fetch(location))
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {location}: {error.strerror}") from error
    if not content.strip():
        raise UserError(f"the vocabulary {location} is empty")
    return content


def package(name: str, location: str, what: str) -> Any:
    """A package that reads vocabularies; UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{location}: {what} the package {name}, which is not installed: "
            'pip install "vit-jax[text]"'
        ) from error


def is_whole(content: bytes) -> bool:
    """Whether a file is JSON, as the `tokenizer.json` of transformers is."""
    return content.lstrip().startswith(b"{")


def whole(location: str, content: bytes) -> "tokenizers.Tokenizer":
    """The tokenizer of a `tokenizer.json`, which neither cuts texts nor fills them up.

    Raises:
      UserError: for a file that is none, or is damaged, and without the package.
    """
    found = package("tokenizers", location, "a tokenizer.json needs")
    try:
        model = found.Tokenizer.from_str(content.decode())
    except Exception as error:  # the package raises this class itself
        raise UserError(f"{location} is no tokenizer.json, or it is damaged: {error}") from error
    model.no_truncation()
    model.no_padding()
    return model

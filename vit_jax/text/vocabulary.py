"""Reads the file of a vocabulary."""

from vit_jax import stores
from vit_jax.errors import UserError


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

"""Readers by format: the first bytes of a file decide which it needs, not its name."""

import os
import pathlib
import zipfile

from vit_jax.checkpoint.files.archive import Archive, reading
from vit_jax.checkpoint.files.flax import FlaxFile
from vit_jax.checkpoint.files.npz import Npz, write_npz
from vit_jax.checkpoint.files.orbax import OrbaxDir, is_orbax, write_orbax
from vit_jax.checkpoint.files.safetensors import Safetensors, write_safetensors
from vit_jax.checkpoint.files.shards import INDEX, Shards, require_whole
from vit_jax.checkpoint.files.torch import Torch, write_torch
from vit_jax.errors import UserError

_MSGPACK_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)  # what a Flax file, a map, begins with

__all__ = [
    "Archive",
    "open_archive",
    "write_npz",
    "write_orbax",
    "write_safetensors",
    "write_torch",
]


def open_archive(path: str | os.PathLike) -> Archive:
    """Opens a checkpoint file, an index of several or an Orbax directory for reading.

    Raises UserError for what is missing, unreadable, damaged or of no known format.
    """
    path = pathlib.Path(path)
    if path.name.endswith(INDEX):
        return Shards(path, _open_file)
    require_whole(path)
    return _open_file(path)


def _open_file(path: pathlib.Path) -> Archive:
    with reading(path, "checkpoint"):
        reader = _directory_reader(path) if path.is_dir() else _file_reader(path)
    archive = reader(path)
    if not archive:
        archive.close()
        raise UserError(f"{str(path)!r} holds no tensors")
    return archive


def _directory_reader(path: pathlib.Path) -> type[Archive]:
    if not is_orbax(path):
        raise UserError(f"{str(path)!r} is a directory, but no checkpoint of Orbax")
    return OrbaxDir


def _file_reader(path: pathlib.Path) -> type[Archive]:
    with open(path, "rb") as f:
        start = f.read(9)
    if not start:
        raise UserError(f"{str(path)!r} is empty")
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        return Torch if _is_torch_zip(path) else Npz
    if start[8:9] == b"{":
        return Safetensors
    if start[:1] == b"\x80":  # a pickle: torch's old format, read without running it
        return Torch
    if start[0] in _MSGPACK_MAPS:
        return FlaxFile
    raise UserError(
        f"{str(path)!r} is no checkpoint of a known format (npz, safetensors, torch, flax): it "
        f"starts with {start!r}"
    )


def _is_torch_zip(path: pathlib.Path) -> bool:
    with zipfile.ZipFile(path) as z:
        return any(name.endswith("data.pkl") for name in z.namelist())

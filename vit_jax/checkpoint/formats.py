"""Files by format: which reader a file needs is decided by its first bytes, not by its name."""

import os
import pathlib
import zipfile

from vit_jax.checkpoint.archive import Archive, reading
from vit_jax.checkpoint.npz import Npz, write_npz
from vit_jax.checkpoint.safetensors_file import Safetensors, write_safetensors
from vit_jax.checkpoint.torch_file import Torch, write_torch
from vit_jax.errors import UserError

__all__ = ["Archive", "open_archive", "write_npz", "write_safetensors", "write_torch"]


def open_archive(path: str | os.PathLike) -> Archive:
    """Opens a checkpoint file for reading, tensor by tensor.

    Raises UserError for a file that is missing, unreadable, damaged or of no known format.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a directory; expected a checkpoint file")
    with reading(path, "checkpoint"):
        with open(path, "rb") as f:
            start = f.read(9)
        if start[:4] in (b"PK\3\4", b"PK\5\6"):
            reader = Torch if _is_torch_zip(path) else Npz
        elif start[8:9] == b"{":
            reader = Safetensors
        elif start[:1] == b"\x80":  # a pickle: torch's old format, read without running it
            reader = Torch
        elif not start:
            raise UserError(f"{str(path)!r} is empty")
        else:
            raise UserError(
                f"{str(path)!r} is no checkpoint of a known format (npz, safetensors, torch): it "
                f"starts with {start!r}"
            )
    archive = reader(path)
    if not archive:
        archive.close()
        raise UserError(f"{str(path)!r} holds no tensors")
    return archive


def _is_torch_zip(path: pathlib.Path) -> bool:
    with zipfile.ZipFile(path) as z:
        return any(name.endswith("data.pkl") for name in z.namelist())

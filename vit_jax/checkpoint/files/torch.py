"""PyTorch's `.pth`/`.bin`: read with `weights_only=True`, so that no code in it runs."""

import io
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint.files.archive import BFLOAT16, Archive, Spec, reading, replacing, to_numpy
from vit_jax.errors import UserError


class Torch(Archive):
    format = "torch"

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        torch = _torch()
        with reading(self.path, self.format):
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if not isinstance(state, Mapping):
                raise UserError(f"expected a state dict, found {type(state).__name__}")
            self._tensors = dict(_tensors(state, torch.Tensor))
            self.specs = {
                name: Spec(tuple(x.shape), to_numpy(x[:0] if x.ndim else x).dtype)
                for name, x in self._tensors.items()
            }

    def read(self, name: str) -> np.ndarray:
        return to_numpy(self._tensors[name])


def read_tensor(content: bytes, path: str) -> np.ndarray:
    """The one tensor of a file that `torch.save` wrote, read with `weights_only=True`.

    Args:
      content: The bytes of the file.
      path: Its name, for messages.

    Raises:
      UserError: if it cannot be read, or holds something else.
    """
    torch = _torch()
    with reading(pathlib.Path(path), Torch.format):
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(found, torch.Tensor):
            raise UserError(f"{path}: expected one tensor, found {type(found).__name__}")
        return to_numpy(found)


def _tensors(state: Mapping[Any, Any], tensor: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor of nested dicts, by '.'-joined name."""
    for name, x in state.items():
        if isinstance(x, tensor):
            yield f"{prefix}{name}", x
        elif isinstance(x, Mapping):
            yield from _tensors(x, tensor, f"{prefix}{name}.")


def write_torch(path: str | os.PathLike, tensors: Mapping[str, Any]) -> None:
    """Writes a plain state dict. `path` appears whole or not at all."""
    torch = _torch()

    def tensor(x: Any) -> Any:
        x = np.array(to_numpy(x), order="C")
        if x.dtype == BFLOAT16:
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)

    with replacing(path) as f:
        torch.save({name: tensor(tensors[name]) for name in tensors}, f)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            "reading or writing .pth files needs PyTorch: pip install 'vit-jax[torch]'"
        ) from None
    return torch

"""PyTorch's `.pth`/`.bin`: read with `weights_only=True`, so that no code in it runs."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint.files.archive import BFLOAT16, Archive, Spec, reading, replacing, to_numpy
from vit_jax.errors import UserError

# Training scripts wrap the weights; the averaged ones are the ones that are published.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


class Torch(Archive):
    format = "torch"

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        torch = _torch()
        with reading(self.path, self.format):
            state = _unwrap(torch.load(self.path, map_location="cpu", weights_only=True))
            self._tensors = {
                str(name).removeprefix("module."): x
                for name, x in state.items()
                if isinstance(x, torch.Tensor)
            }
            self.specs = {
                name: Spec(tuple(x.shape), to_numpy(x[:0] if x.ndim else x).dtype)
                for name, x in self._tensors.items()
            }

    def read(self, name: str) -> np.ndarray:
        return to_numpy(self._tensors[name])


def _unwrap(state: Any) -> Mapping[str, Any]:
    for name in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            return _unwrap(state[name])
    if not isinstance(state, Mapping):
        raise UserError(f"expected a state dict, found {type(state).__name__}")
    return state


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

"""Files of zeros with the names and shapes of a model, in any layout that it has."""

import functools

import numpy as np

from vit_jax.checkpoint import names
from vit_jax.checkpoint.files.formats import write_npz, write_safetensors
from vit_jax.families.registry import resolve


@functools.cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    spec = resolve(name)
    size = (spec.preprocess.size,) * 2
    return names.expected_shapes(spec.config.to_dict(), num_classes=10, image_size=size)


@functools.cache
def state(name: str, layout: str) -> dict[str, np.ndarray]:
    ours = {n: np.broadcast_to(np.float16(0), s) for n, s in shapes(name).items()}
    config = resolve(name).config.to_dict()
    return {n: np.array(x) for n, x in names.exported(ours, config, layout).items()}


def write(path, tensors, metadata=None):
    is_npz = path.suffix == ".npz"
    write = write_npz if is_npz else write_safetensors
    write(path, tensors, metadata or ({} if is_npz else {"format": "pt"}))
    return path

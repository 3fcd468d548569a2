"""Files of zeros with the names and shapes of a model, in any layout that it has."""

import functools

import numpy as np

from vit_jax.checkpoint import names
from vit_jax.checkpoint.files.formats import write_npz, write_safetensors
from vit_jax.families.registry import resolve


@functools.cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    spec = resolve(name)
    size, num_classes = (spec.preprocess.size,) * 2, 10 if spec.num_classes else 0
    return names.expected_shapes(spec.config.to_dict(), num_classes=num_classes, image_size=size)


@functools.cache
def state(name: str, layout: str) -> dict[str, np.ndarray]:
    ours = {n: np.broadcast_to(np.float16(0), s) for n, s in shapes(name).items()}
    config = resolve(name).config.to_dict()
    held, _ = names.reduced(ours, config, layout, None)
    return {n: np.array(x) for n, x in names.exported(held, config, layout).items()}


def write(path, tensors, metadata=None):
    is_npz = path.suffix == ".npz"
    write = write_npz if is_npz else write_safetensors
    write(path, tensors, metadata or ({} if is_npz else {"format": "pt"}))
    return path

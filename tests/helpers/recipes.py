"""Weights and images rebuilt from names and shapes; what `tests/golden` was made with."""

import hashlib
import json
import pathlib
from collections.abc import Mapping

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def golden_json(name: str) -> dict:
    return json.loads((GOLDEN / name).read_text())


def flatten(tree: Mapping, prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dict to {'a/b/c': leaf}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> dict:
    tree: dict = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def random_params(shapes: Mapping[str, tuple], scale: float, seed: int = 0) -> dict:
    """Every parameter random: a zero head or bias would hide what it multiplies."""
    rng = np.random.default_rng(seed)
    flat = {}
    for name in sorted(shapes):
        value = rng.standard_normal(shapes[name]).astype(np.float32) * np.float32(scale)
        flat[name] = value + np.float32(1) if name.endswith("scale") else value
    return unflatten(flat)


def random_images(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """NHWC in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def sha256(params: Mapping) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(flatten(params).items()):
        digest.update(name.encode())
        digest.update(value.tobytes())
    return digest.hexdigest()

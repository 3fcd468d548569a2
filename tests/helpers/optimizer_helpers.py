"""Optimizers of a config without the rest of a run, random trees, and Muon's iteration in NumPy."""

import numpy as np
import optax
from recipes import unflatten

from vit_jax.configs import common
from vit_jax.train.optimizers import make_optimizer


def build_optimizer(optim: str, rate, **changes) -> optax.GradientTransformation:
    config = common.get_config()
    config.update({"optim": optim, "optim_dtype": "float32", "grad_norm_clip": None, **changes})
    return make_optimizer(config, rate)


def random_tree(shapes, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return unflatten({k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()})


def orthogonal(x):
    """Five iterations of Newton and Schulz; the transposed matrix gives the transposed result."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    return x

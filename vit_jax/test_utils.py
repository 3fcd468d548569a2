"""The original's `test_utils` module: its name and signature."""

import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax import checkpoint, models


def create_checkpoint(model_config: ConfigDict, path: str | os.PathLike) -> None:
    """Writes fresh weights of a model with one class, for images of one 16-pixel patch."""
    model = models.from_config(model_config, num_classes=1)
    variables = model.init(jax.random.key(0), jnp.ones((1, 16, 16, 3)), train=False)
    checkpoint.save(path, jax.device_get(variables["params"]))

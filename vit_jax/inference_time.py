"""Measures images per second of a forward pass, as the original's module of this name does."""

import functools
import os
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.configs import inference_time as recipe
from vit_jax.devices.sharding import check_batch, make_mesh, replicated, split_batch
from vit_jax.errors import UserError
from vit_jax.layers.attention.choice import attending
from vit_jax.train.metrics import MetricWriter
from vit_jax.train.workdir import opened


def inference_time(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, float]:
    """Measures `config.steps` batches after `config.initial_steps`, on all devices.

    Returns:
      Images per second and device: `imgs_sec_core_min`, `_max`, `_mean` and `_std`. They are
      written to `workdir` too.

    Raises:
      UserError: for a number out of its range, an `attend` that cannot compute the model, or a
        workdir that holds a training run, whose metrics would be lost.
    """
    for field, known in recipe.RANGES.items():
        known.require(f"config.{field}", config[field])
    mesh = make_mesh()
    check_batch("batch", config.batch, mesh)
    with opened(workdir) as folder:
        if (pathlib.Path(folder) / "run.json").exists():
            raise UserError(
                f"--workdir={workdir} holds a training run, whose metrics would be replaced by "
                "these; use another one"
            )
        return _measure(config, mesh, folder)


def _measure(config: ConfigDict, mesh: jax.sharding.Mesh, workdir: str | os.PathLike):
    model = models.get_model(config.model_name, num_classes=config.num_classes)
    shape = (config.batch, config.image_size, config.image_size, 3)
    full, split = replicated(mesh), split_batch(mesh)
    init = jax.jit(functools.partial(model.init, train=False), out_shardings=full)
    variables = init(jax.random.key(0), jnp.ones((1, *shape[1:])))
    attend: Any = config.get("attend", "auto")
    attention = attending(attend, mesh)
    forward = attention(functools.partial(model.apply, train=False))
    forward = jax.jit(forward, in_shardings=(full, split))
    images = jax.device_put(jnp.ones(shape), split)

    logging.info("compiling, then %d steps before measuring", config.initial_steps)
    for _ in range(1 + config.initial_steps):
        jax.block_until_ready(forward(variables, images))
    speeds = []
    for _ in range(config.steps):
        start = time.perf_counter()
        jax.block_until_ready(forward(variables, images))
        speeds.append(config.batch / (time.perf_counter() - start) / mesh.size)

    figures = {
        "imgs_sec_core_min": min(speeds),
        "imgs_sec_core_max": max(speeds),
        "imgs_sec_core_mean": statistics.fmean(speeds),
        "imgs_sec_core_std": statistics.pstdev(speeds),
    }
    for name, value in figures.items():
        logging.info("%s=%f", name, value)
    writer = MetricWriter(workdir, first_step=-1)
    writer.write(0, figures)
    writer.close()
    return figures

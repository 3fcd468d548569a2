"""Our side: the forward pass, and the step that `train` runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.bench.measuring import Subject
from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh
from vit_jax.families import registry
from vit_jax.layers.attention.choice import attending
from vit_jax.train import engine as engine_lib
from vit_jax.train.log import device_memory


def subject(name: str, mode: str, batch: int, size: int, dtype: str, attend: str) -> Subject:
    """Model `name` on the first of this machine's devices; see `vit-jax bench`."""
    make = _train if mode == "train" else _forward
    return Subject("vit_jax", make(name, batch, size, dtype, attend), _peak_memory)


def config(name: str, batch: int, size: int, dtype: str, attend: str) -> ConfigDict:
    """AdamW, clipping, no dropout: what a training step of `name` is timed with."""
    settings: Any = common.get_config().unlock()
    settings.model = registry.resolve(name).config.copy_and_resolve_references().unlock()
    transformer: Any = settings.model.get("transformer")
    if transformer is not None and "dropout_rate" in transformer:
        transformer.dropout_rate = 0.0
    settings.optim, settings.weight_decay, settings.base_lr = "adamw", 0.05, 1e-3
    settings.batch = settings.batch_eval = batch
    settings.accum_steps, settings.total_steps, settings.warmup_steps = 1, 10_000, 10
    settings.pp.crop, settings.dtype, settings.attend = size, dtype, attend
    return common.with_defaults(settings)


def _forward(name: str, batch: int, size: int, dtype: str, attend: str):
    model: Any = models.get_model(name, num_classes=1000, dtype=jnp.dtype(dtype))
    images = jnp.asarray(_images(batch, size))
    variables = jax.jit(lambda key: model.init(key, images[:1], train=False))(jax.random.key(0))
    forward = jax.jit(attending(attend, _one_device())(lambda v, x: model.apply(v, x, train=False)))
    return lambda: jax.block_until_ready(forward(variables, images))


def _train(name: str, batch: int, size: int, dtype: str, attend: str):
    settings: Any = config(name, batch, size, dtype, attend)
    engine = engine_lib.build(settings, _one_device(), num_classes=1000)
    state = engine.init(jax.random.key(0))
    labels = np.eye(1000, dtype=np.float32)[np.arange(batch) % 1000]
    data = jax.device_put({"image": _images(batch, size), "label": labels}, engine.batch)
    key = jax.random.key(1)

    def run() -> None:
        nonlocal state
        state, scalars = engine.train_step(state, data, key)
        jax.block_until_ready((state, scalars))

    return run


def _one_device() -> Mesh:
    """The peer uses one, too."""
    return make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.local_devices()[:1])


def _images(batch: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, size, size, 3)).astype(np.float32)


def _peak_memory() -> int | None:
    memory = device_memory(jax.local_devices()[0])
    return memory and memory[0]

"""What the compiler is told: only on TPU, and through the engine."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vit_jax.configs import common, models
from vit_jax.devices.compiler_options import compiler_options
from vit_jax.devices.sharding import make_mesh
from vit_jax.train import engine as engine_lib


def mesh_of(platform):
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))


def test_only_tpus_get_options():
    assert compiler_options(mesh_of("tpu"), gather_whole=True)
    assert compiler_options(mesh_of("tpu"), gather_whole=False) is None
    assert compiler_options(mesh_of("cpu"), gather_whole=True) is None
    assert compiler_options(mesh_of("gpu"), gather_whole=True) is None


def test_they_reach_the_compiler(monkeypatch):
    unknown = {"xla_no_such_option": "1"}
    monkeypatch.setattr(engine_lib, "compiler_options", lambda *args, **kwargs: unknown)
    config = common.get_config().unlock()
    config.model, config.total_steps = models.get_testing_config(), 1000
    config.batch = config.batch_eval = 8
    config.accum_steps, config.pp.crop = 1, 32
    engine = engine_lib.build(config, make_mesh(), num_classes=3)
    state = jax.eval_shape(engine.init, jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((8, 32, 32, 3), np.float32),
        "label": jax.ShapeDtypeStruct((8, 3), np.float32),
    }
    lowered = engine.train_step.lower(state, batch, jax.eval_shape(jax.random.key, 0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        lowered.compile()

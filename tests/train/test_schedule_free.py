"""Training with schedule-free AdamW: what is evaluated, saved, resumed and started from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from recipes import flatten, random_images

from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh
from vit_jax.errors import UserError
from vit_jax.train import engine as engine_lib
from vit_jax.train.checkpointing import Checkpoints, load_params
from vit_jax.train.state import started_from
from vit_jax.variables import named


def build(**changes):
    optim = {"optim": "schedule_free_adamw", "weight_decay": 0.1, "warmup_steps": 1}
    config = tiny_run.config("", **{**optim, "decay_type": "constant", **changes})
    config = common.with_defaults(config)
    return engine_lib.build(config, make_mesh(config.mesh), num_classes=2)


def assert_same(got, want) -> None:
    want = flatten(jax.device_get(want))
    for name, value in flatten(jax.device_get(got)).items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)


def test_it_goes_on_as_if_it_had_not_stopped(tmp_path):
    engine, key = build(mesh__fsdp=2), jax.random.key(0)
    batch = {
        "image": random_images((8, 16, 16, 3)),
        "label": np.eye(2, dtype=np.float32)[[0, 1] * 4],
    }
    batch = jax.device_put(batch, engine.batch)
    state = engine.init(key)
    for _ in range(3):
        state, _ = engine.train_step(state, batch, key)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        again = checkpoints.restore(like=engine.init(jax.random.key(1)))
    best, trained = (jax.device_get(x) for x in (named(state.best_variables), state.params))
    state, _ = engine.train_step(state, batch, key)
    again, _ = engine.train_step(again, batch, key)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))

    # The average is what other commands read and what is evaluated; training goes on elsewhere.
    assert_same(load_params(tmp_path), best)
    assert np.abs(trained["head"]["kernel"] - best["head"]["kernel"]).max() > 1e-5
    assert (
        int(engine.eval_step(state.best_variables, {**batch, "mask": np.ones(8)})["examples"]) == 8
    )

    # Another run that starts from trained parameters has an average that starts there too.
    variables = jax.tree.map(jnp.copy, state.variables)
    start = started_from(engine.init(jax.random.key(1)), variables, engine.tx)
    assert_same(start.best_variables["params"], state.params)


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(UserError, match=r"set ema\.decay=0"):
        build(ema__decay=0.9)
    engine = build()
    state = jax.eval_shape(engine.init, jax.random.key(0))
    state = dataclasses.replace(state, batch_stats={"norm": {"mean": 0.0}})
    with pytest.raises(UserError, match="this model's BatchNorms do not fit: use 'adamw'"):
        engine_lib._check_average(state, "schedule_free_adamw")

"""Models with running statistics: trained, sharded, averaged, saved and gone on with."""

import shutil

import jax
import numpy as np
import pytest
import tiny_run
from flax import linen as nn
from recipes import flatten, random_images

from vit_jax import models, train
from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh
from vit_jax.layers.norm import BatchNorm
from vit_jax.train import engine as engine_lib
from vit_jax.train.checkpointing import Checkpoints, load_params
from vit_jax.variables import collections, named

MOMENTUM = 0.9


class Net(nn.Module):
    """Stem, BatchNorm, mean, head."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(8, (4, 4), (4, 4), name="stem")(x)
        x = nn.relu(BatchNorm(name="norm")(x, use_running_average=not train))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


@pytest.fixture(autouse=True)
def net(monkeypatch):
    monkeypatch.setattr(models, "from_config", lambda config, num_classes: Net(num_classes))


IMAGES = random_images((8, 16, 16, 3)) + np.linspace(0, 1, 8, dtype=np.float32)[:, None, None, None]
LABELS = np.eye(2, dtype=np.float32)[np.arange(8) % 2]
BATCH = {"image": IMAGES, "label": LABELS}


def build(**changes):
    config = common.with_defaults(tiny_run.config("", **{"warmup_steps": 0} | changes))
    return engine_lib.build(config, make_mesh(config.mesh), num_classes=2)


def stepped(engine, steps: int = 1):
    state = engine.init(jax.random.key(0))
    for _ in range(steps):
        batch = jax.device_put(BATCH, engine.batch)
        state, scalars = engine.train_step(state, batch, jax.random.key(1))
    return state, float(scalars["loss"])


def after(old: dict, params: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    """The running statistics once a batch of `images` went by."""
    stem = jax.jit(nn.Conv(8, (4, 4), (4, 4)).apply)
    x = np.asarray(stem({"params": params["stem"]}, images), np.float64)
    now = {"mean": x.mean(axis=(0, 1, 2)), "var": x.var(axis=(0, 1, 2))}
    return {name: MOMENTUM * old[name] + (1 - MOMENTUM) * now[name] for name in now}


def assert_statistics(state, expected: dict) -> None:
    for name, want in expected.items():
        np.testing.assert_allclose(state.batch_stats["norm"][name], want, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def fresh():
    state = Net(2).init(jax.random.key(0), IMAGES, train=False)
    return jax.device_get(state)


@pytest.mark.parametrize("mesh", [{"data": 4}, {"data": 1, "fsdp": 4}, {"data": 2, "model": 2}])
def test_statistics_are_of_the_batch_over_all_devices(mesh):
    engine = build(mesh={"data": 1, "fsdp": 1, "model": 1} | mesh)
    start = jax.device_get(engine.init(jax.random.key(0)))
    state, _ = stepped(engine)
    assert_statistics(state, after(start.batch_stats["norm"], start.params, IMAGES))
    two = after(start.batch_stats["norm"], start.params, IMAGES[:2])["mean"]
    assert np.abs(state.batch_stats["norm"]["mean"] - two).max() > 1e-3  # not of one device
    state, _ = stepped(engine, 3)
    same = jax.tree.map(
        lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, engine.shardings
    )
    assert all(jax.tree.leaves(same))


def test_each_part_updates_the_statistics_in_turn():
    engine = build(accum_steps=2)
    start = jax.device_get(engine.init(jax.random.key(0)))
    first = after(start.batch_stats["norm"], start.params, IMAGES[0::2])
    expected = after(first, start.params, IMAGES[1::2])
    assert_statistics(stepped(engine)[0], expected)


def test_sam_leaves_the_statistics_of_the_first_pass():
    plain, _ = stepped(build())
    sam, _ = stepped(build(sam__rho=0.5))
    assert_statistics(sam, jax.device_get(plain.batch_stats["norm"]))
    different = np.asarray(sam.params["head"]["kernel"] - plain.params["head"]["kernel"])
    assert np.abs(different).max() > 1e-4


def test_evaluation_uses_the_running_statistics():
    engine = build(batch_eval=8)
    state, _ = stepped(engine, 3)
    batch = {**BATCH, "mask": np.ones(8, np.float32)}

    def losses(statistics, batch):
        variables = {"params": state.params, "batch_stats": statistics}
        placed = jax.device_put(batch, engine.batch)
        return np.asarray(engine.eval_step(variables, placed)["losses"])

    all_eight = losses(state.batch_stats, batch)
    others = jax.tree.map(lambda x: np.concatenate([x[:4], 3 + x[:4]]), batch)
    np.testing.assert_array_equal(losses(state.batch_stats, others)[:4], all_eight[:4])
    moved = jax.tree.map(lambda x: x + 1, state.batch_stats)
    assert np.abs(losses(moved, batch) - all_eight).min() > 1e-4


def test_the_moving_average_is_of_statistics_too():
    engine = build(ema={"decay": 0.75, "warmup": False})
    start = jax.device_get(engine.init(jax.random.key(0)))
    state, _ = stepped(engine)
    for name, first in flatten(start.variables).items():
        want = 0.75 * first + 0.25 * flatten(state.variables)[name]
        np.testing.assert_allclose(flatten(state.ema)[name], want, rtol=1e-5, err_msg=name)
    assert state.best_variables is state.ema


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_checkpoints_hold_statistics_among_the_parameters(tmp_path, ema):
    engine = build(ema={"decay": ema, "warmup": False})
    state, _ = stepped(engine, 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(like=engine.init(jax.random.key(5)))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    stored = load_params(tmp_path)
    assert stored["norm"].keys() == {"scale", "bias", "mean", "var"}
    jax.tree.map(np.testing.assert_array_equal, stored, state.best_params)
    if ema:
        assert np.abs(stored["norm"]["mean"] - state.batch_stats["norm"]["mean"]).max() > 1e-4


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, ema):
    images = tiny_run.write_images(tmp_path / "images")
    changes = {
        "total_steps": 4,
        "warmup_steps": 0,
        "checkpoint_every": 2,
        "eval_every": 2,
        "keep_checkpoints": 0,
    }
    config = tiny_run.config(images, dropout=False, ema__decay=ema, **changes)
    whole = jax.device_get(train.train_and_evaluate(config, tmp_path / "whole"))
    assert np.abs(whole["batch_stats"]["norm"]["mean"]).max() > 1e-3
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoint_4")
    resumed = jax.device_get(train.train_and_evaluate(config, tmp_path / "stopped"))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert tiny_run.stored(tmp_path / "stopped") == tiny_run.stored(tmp_path / "whole")
    assert tiny_run.lines(tmp_path / "stopped") == tiny_run.lines(tmp_path / "whole")


def test_names_tell_parameters_from_statistics(fresh):
    tree = named(fresh)
    assert set(flatten(tree)) == {
        "stem/kernel", "stem/bias", "norm/scale", "norm/bias", "norm/mean", "norm/var",
        "head/kernel", "head/bias",
    }  # fmt: skip
    statistics = ("norm/mean", "norm/var")
    jax.tree.map(np.testing.assert_array_equal, collections(tree, statistics), fresh)
    plain = {"params": fresh["params"]}
    assert named(plain) == plain["params"]
    # A parameter that is called as statistics are stays a parameter.
    assert collections(tree, ()) == {"params": tree, "batch_stats": {}}
    assert collections(plain["params"], ()) == {**plain, "batch_stats": {}}

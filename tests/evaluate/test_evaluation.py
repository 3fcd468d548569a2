"""Evaluation: what is summed, in which shape, and where."""

import functools
import math

import jax
import numpy as np
import pytest
from recipes import random_images

from vit_jax.configs import common, models
from vit_jax.devices.sharding import make_mesh
from vit_jax.evaluate import features
from vit_jax.evaluate.evaluation import evaluate
from vit_jax.evaluate.kinds import feature_step
from vit_jax.models import get_model
from vit_jax.train import batch_parts
from vit_jax.train import engine as engine_lib
from vit_jax.train.losses import softmax_cross_entropy
from vit_jax.train.step import make_eval_step

N, K = 24, 6
IMAGES, LABELS = random_images((N, 16, 16, 3)), np.eye(K, dtype=np.float32)[np.arange(N) % K]
MASK = (np.arange(N) % 5 > 0).astype(np.float32)
MODEL = get_model("testing", num_classes=K)


@functools.cache
def variables():
    shapes = jax.eval_shape(
        functools.partial(MODEL.init, train=False), jax.random.key(0), IMAGES[:1]
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: 0.2 * rng.normal(size=s.shape).astype(s.dtype), shapes)


def batch(rows: slice = slice(None)) -> dict[str, np.ndarray]:
    image = np.where(MASK[:, None, None, None] > 0, IMAGES, np.nan)
    return {"image": image[rows], "label": LABELS[rows], "mask": MASK[rows]}


@pytest.mark.parametrize(
    ("shards", "rows"), [(1, None), (1, 5), (1, 24), (1, 32), (4, 4), (3, 3), (2, 16)]
)
def test_parts_of_a_batch_are_the_batch(shards, rows):
    evaluated = jax.jit(make_eval_step(MODEL, shards=shards, rows=rows))(variables(), batch())
    logits = jax.jit(functools.partial(MODEL.apply, train=False))(variables(), IMAGES)
    real = MASK > 0
    right = np.asarray(logits).argmax(-1) == LABELS.argmax(-1)
    assert int(evaluated["examples"]) == int(evaluated["counted"]) == real.sum()
    assert int(evaluated["correct"]) == (right & real).sum()
    expected = np.where(real, softmax_cross_entropy(logits, LABELS), 0)
    np.testing.assert_allclose(evaluated["losses"], expected, rtol=1e-5)


@pytest.mark.parametrize(("shards", "multiple", "n"), [(3, 4, 2), (2, 6, 3), (6, 1, 1)])
def test_what_is_padded_and_split_is_joined(shards, multiple, n):
    x = np.arange(1, 13)
    padded = batch_parts.pad(x, shards, multiple)
    runs = np.asarray(padded).reshape(shards, -1)
    share = 12 // shards
    assert runs.shape[1] == -(-share // multiple) * multiple
    np.testing.assert_array_equal(runs[:, :share].ravel(), x)
    assert not runs[:, share:].any()
    split = batch_parts.split(padded, n)
    assert split.shape == (n, padded.shape[0] // n)
    np.testing.assert_array_equal(split[0], padded[::n])
    np.testing.assert_array_equal(batch_parts.join(split), padded)


def engine(mesh: dict, rows: int = 4):
    config = common.get_config()
    config.model = models.get_testing_config()
    config.mesh, config.pp.crop = mesh, 16
    config.batch = config.batch_eval = N
    config.accum_steps, config.total_steps, config.warmup_steps = 1, 1, 0
    config.batch_eval_device = rows
    config = common.with_defaults(config)
    return engine_lib.build(config, make_mesh(config.mesh), num_classes=K)


def test_every_device_evaluates_its_share_and_no_image_moves():
    four = engine({"data": 4})
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (variables(), batch()))
    compiled = four.eval_step.lower({**shapes[0], "batch_stats": {}}, shapes[1]).compile()
    # One device, a quarter of the batch: padding included, the same work.
    alone = jax.jit(make_eval_step(MODEL, shards=1, rows=4))
    quarter = jax.tree.map(lambda x: jax.ShapeDtypeStruct((N // 4, *x.shape[1:]), x.dtype), batch())
    expected = alone.lower(shapes[0], quarter).compile().cost_analysis()["flops"]
    assert compiled.cost_analysis()["flops"] == pytest.approx(expected, rel=0.02)
    text = compiled.as_text()
    assert "all-to-all" not in text
    assert "collective-permute" not in text


@pytest.mark.parametrize("mesh", [{"data": 4}, {"data": 1, "fsdp": 4}, {"data": 2, "fsdp": 2}])
def test_meshes_and_batches_find_the_same_figures(mesh):
    mean = math.fsum(
        np.asarray(jax.jit(make_eval_step(MODEL, rows=4))(variables(), batch())["losses"], float)
    ) / int((MASK > 0).sum())
    for size in (4, 12, N):
        batches = [batch(slice(i, i + size)) for i in range(0, N, size)]
        built = engine(mesh)
        placed = jax.device_put({**variables(), "batch_stats": {}}, built.shardings.variables)
        assert evaluate(built, placed, batches, ahead=2).loss == mean


@pytest.mark.parametrize("mesh", [{"data": 4}, {"data": 2, "fsdp": 2}])
def test_meshes_find_the_features_of_one_device_to_the_last_bit(mesh):
    built, config = engine(mesh), common.get_config()
    config.model = models.get_testing_config()
    headless = features.without_head({**variables(), "batch_stats": {}})
    alone = jax.jit(features.make_feature_step(features.feature_model(config.model)))
    want = np.asarray(alone(headless, np.nan_to_num(batch()["image"])))
    placed = jax.device_put(headless, features.without_head(built.shardings.variables))
    halves = [jax.device_put(batch(slice(i, i + 12)), built.batch) for i in (0, 12)]
    step = feature_step(built, config)
    got = features.gathered([step(placed, half) for half in halves], K)
    np.testing.assert_array_equal(got.features, want[MASK > 0])
    np.testing.assert_array_equal(got.labels, LABELS[MASK > 0])
    assert len(np.unique(got.features, axis=0)) == len(got.labels)  # the images differ

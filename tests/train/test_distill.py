"""Distillation: the published losses, and a teacher in the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from flax import linen as nn
from recipes import GOLDEN, flatten, random_images

from vit_jax import inference, models, train
from vit_jax.checkpoint.facts import Model
from vit_jax.configs import common
from vit_jax.configs import models as model_configs
from vit_jax.devices.sharding import AXES, AxisType, make_mesh
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.layers.head import HEADS, heads_of, two_heads
from vit_jax.train import engine as engine_lib
from vit_jax.train import loop
from vit_jax.train.distill import distilled
from vit_jax.train.losses import get_loss, softmax_cross_entropy
from vit_jax.train.mixing import Mixing
from vit_jax.train.state import TrainState
from vit_jax.train.step import make_train_step
from vit_jax.train.teacher import load_teacher

FIGURES = np.load(GOLDEN / "distill.npz")
CASES = sorted(name for name in FIGURES if name.startswith(("deit_soft_a", "deit_hard_a")))
SIZE, CLASSES = 16, 2
NAMES = ["cat", "dog"]


# --- losses --------------------------------------------------------------------------------------


def by_us(case: str, heads=("cls", "dist")) -> float:
    """What the name of a recorded case describes."""
    _, kind, alpha, tau, base = case.split("_", 4)
    labels = np.eye(10)[FIGURES["deit_labels"]]
    labels = FIGURES["deit_soft_labels"].astype(np.float64) if base == "soft_ce" else labels
    loss = get_loss("softmax", 0.1 if base == "ls0.1" else 0.0)
    objective = distilled(loss, kind, float(alpha[5:]), float(tau[3:]))
    with jax.enable_x64(True):
        outputs = tuple(jnp.asarray(FIGURES[f"deit_logits_{h}"], jnp.float64) for h in heads)
        teacher = jnp.asarray(FIGURES["deit_teacher"], jnp.float64)
        batch = {"label": jnp.asarray(labels), "teacher": teacher}
        return float(objective(outputs, batch).mean())


@pytest.mark.parametrize("case", CASES)
def test_value(case):
    np.testing.assert_allclose(by_us(case), FIGURES[case].item(), rtol=1e-9)
    swapped = by_us(case, heads=("dist", "cls"))
    assert abs(swapped / FIGURES[case].item() - 1) > 1e-3


def test_all_recorded_values_are_met():
    assert len(CASES) == 18


def test_one_head_learns_from_both():
    rng = np.random.default_rng(0)
    logits, teacher = jnp.float32(rng.normal(size=(2, 3, 5)))
    batch = {"label": jnp.eye(5)[:3], "teacher": teacher}
    objective = distilled(softmax_cross_entropy, "hard", 0.25, 1.0)
    hard = jnp.eye(5)[teacher.argmax(-1)]
    want = 0.75 * softmax_cross_entropy(logits, batch["label"])
    want += 0.25 * softmax_cross_entropy(logits, hard)
    np.testing.assert_allclose(objective([logits], batch), want, rtol=1e-5)
    with pytest.raises(UserError, match="this one has 3"):
        objective((logits,) * 3, batch)


# --- the teacher ---------------------------------------------------------------------------------


def write_teacher(path, num_classes: int = CLASSES, size: int = SIZE, name="teacher.npz"):
    """A tiny ViT with random weights, for images in [-1, 1]."""
    config = model_configs.get_testing_config().to_dict()
    model = models.from_config(config, num_classes=num_classes)
    images = np.zeros((1, size, size, 3), np.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes["params"])
    names = [*NAMES, "owl"][:num_classes]
    known = Model("teacher", config, num_classes, (size, size), Preprocess(size), names)
    weights = inference.Weights(known, {"params": params, "batch_stats": {}})
    inference.save_weights(path / name, weights, "official")
    return path / name


def config_of(teacher, images="", **changes):
    changes = {"warmup_steps": 0, "distill__kind": "soft"} | changes
    changes |= {"distill__teacher_checkpoint": str(teacher)}
    return common.with_defaults(tiny_run.config(images, dropout=False, **changes))


class TwoHeads(nn.Module):
    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool):
        x = x.reshape(x.shape[0], -1)
        heads = [nn.Dense(self.num_classes, name=name)(x) for name in ("head", "head_dist")]
        return two_heads(self, *heads)


IMAGES = random_images((8, SIZE, SIZE, 3))
LABELS = np.eye(CLASSES, dtype=np.float32)[np.arange(8) % CLASSES]
BATCH = {"image": IMAGES, "label": LABELS}


def test_the_teacher_sees_the_images_in_its_own_normalisation(tmp_path):
    config = config_of(write_teacher(tmp_path))
    config.pp.mean, config.pp.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    teacher = load_teacher(config, NAMES)
    assert teacher is not None
    pixels = (IMAGES + 1) / 2
    prepared = (pixels - np.float32(config.pp.mean)) / np.float32(config.pp.std)
    forward = jax.jit(functools.partial(teacher.model.apply, train=False))
    want = np.asarray(forward(teacher.variables, IMAGES))
    got = np.asarray(jax.jit(teacher.logits)(teacher.variables, prepared))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * want.std())
    as_is = np.asarray(forward(teacher.variables, prepared))
    assert np.abs(as_is - want).max() > 0.1 * want.std()
    slope = jax.grad(lambda x: teacher.logits(teacher.variables, x).sum())(jnp.asarray(prepared))
    assert not np.asarray(slope).any()


def test_the_teacher_judges_the_mixed_images():
    """The loss of a step, by hand, with a teacher whose logits are sums of pixels."""

    def teach(weight, images):
        return weight * jnp.stack([images[..., 0].sum((1, 2)), images[..., 1].sum((1, 2))], -1)

    model, mixing, tx = TwoHeads(), Mixing(mixup_alpha=0.8, cutmix_alpha=1.0), optax.sgd(0.1)
    objective = distilled(softmax_cross_entropy, "soft", 0.3, 2.0)
    step = jax.jit(
        make_train_step(model, tx, objective=objective, mixing=mixing, teach=teach, accum_steps=2)
    )
    params = model.init(jax.random.key(0), IMAGES, train=True)["params"]
    state = TrainState(jnp.asarray(3, jnp.int32), params, tx.init(params))
    key, weight = jax.random.key(7), jnp.float32(0.1)
    _, scalars = step(state, BATCH, key, weight)

    mixing_key = jax.random.split(jax.random.fold_in(key, 3))[0]
    mixed = mixing(mixing_key, {k: jnp.asarray(v) for k, v in BATCH.items()})
    outputs = heads_of(
        *model.apply({"params": params}, mixed["image"], train=True, mutable=[HEADS])
    )
    assert len(outputs) == 2
    want = objective(outputs, {**mixed, "teacher": teach(weight, mixed["image"])}).mean()
    np.testing.assert_allclose(scalars["loss"], want, rtol=1e-5)
    unmixed = objective(outputs, {**mixed, "teacher": teach(weight, jnp.asarray(IMAGES))}).mean()
    assert abs(float(unmixed / want) - 1) > 1e-3


@pytest.mark.parametrize("mesh", [{"data": 4}, {"data": 1, "fsdp": 4}])
def test_meshes_train_like_one_device(tmp_path, monkeypatch, mesh):
    # A momentum in bfloat16 turns a last digit into a step of 1 / 256.
    changes = {"mesh": {"data": 1, "fsdp": 1, "model": 1} | mesh, "optim_dtype": "float32"}
    config = config_of(write_teacher(tmp_path), **changes)
    teacher = load_teacher(config, NAMES)
    monkeypatch.setattr(models, "from_config", lambda config, num_classes: TwoHeads())

    def three_steps(mesh):
        engine = engine_lib.build(config, mesh, CLASSES, teacher)
        state, losses = engine.init(jax.random.key(0)), []
        for _ in range(3):
            batch = jax.device_put(BATCH, engine.batch)
            state, scalars = engine.train_step(state, batch, jax.random.key(1))
            losses.append(float(scalars["loss"]))
        return losses, flatten(jax.device_get(state.params))

    one = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    expected, params = three_steps(one)
    losses, got = three_steps(make_mesh(config.mesh))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert expected[0] != expected[-1]
    for name, want in params.items():
        np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_run_with_a_teacher_keeps_nothing_of_it(tmp_path, monkeypatch):
    images = tiny_run.write_images(tmp_path / "images")
    steps = {"total_steps": 4, "checkpoint_every": 2, "eval_every": 2, "keep_checkpoints": 0}
    config = config_of(write_teacher(tmp_path), images, **steps)
    train.train_and_evaluate(config, tmp_path / "run")
    plain = tiny_run.config(images, dropout=False, warmup_steps=0, **steps)
    train.train_and_evaluate(plain, tmp_path / "plain")
    with_teacher, without = (tiny_run.stored(tmp_path / name)[4] for name in ("run", "plain"))
    assert with_teacher.keys() == without.keys()
    assert with_teacher != without

    # Nor does it wear out: a second process goes on from step 2 as the first one did.
    (tmp_path / "run" / "checkpoint_4").rename(tmp_path / "first")
    train.train_and_evaluate(config, tmp_path / "run")
    assert tiny_run.stored(tmp_path / "run")[4] == with_teacher


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill__kind": "sotf"}, "Did you mean 'soft'"),
        ({"distill__alpha": 1.5}, "config.distill.alpha must be in [0, 1], got 1.5"),
        ({"distill__tau": 0.0}, "config.distill.tau must be a finite number above 0, got 0.0"),
        ({"distill__teacher_checkpoint": ""}, "needs --config.distill.teacher_checkpoint"),
        ({"pp__crop": 32}, "does not take images of 32×32 pixels"),
    ],
    ids=str,
)
def test_bad_settings(tmp_path, changes, message):
    images = tiny_run.write_images(tmp_path / "images", train=4, test=1)
    config = config_of(write_teacher(tmp_path), images)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(config, tmp_path / "run")
    assert message in str(error.value)
    assert not list(tmp_path.glob("run/checkpoint_*"))


def test_a_teacher_of_other_classes(tmp_path):
    config = config_of(write_teacher(tmp_path, num_classes=3))
    with pytest.raises(UserError, match="tells 3 classes apart, the dataset has 2"):
        load_teacher(config, NAMES)
    assert load_teacher(common.with_defaults(tiny_run.config("")), NAMES) is None


def test_the_teachers_classes_are_found_by_name(tmp_path):
    config = config_of(write_teacher(tmp_path))
    forward = {}
    for names in (NAMES, NAMES[::-1]):
        teacher = load_teacher(config, names)
        forward[names[0]] = np.asarray(jax.jit(teacher.logits)(teacher.variables, IMAGES))
    np.testing.assert_array_equal(forward["dog"], forward["cat"][:, ::-1])
    with pytest.raises(
        UserError, match=r"chat = cat, chien = dog\. .*config\.distill\.by_position"
    ):
        load_teacher(config, ["chat", "chien"])
    config = config_of(write_teacher(tmp_path), distill__by_position=True)
    assert load_teacher(config, ["chat", "chien"]).order == (0, 1)

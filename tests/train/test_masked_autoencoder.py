"""The objective of masked autoencoders: losses by hand, refusals, devices, and a run."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax import checkpoint, inference, models
from vit_jax.checkpoint import names
from vit_jax.configs import common, mae, mae_finetune
from vit_jax.devices.sharding import AXES, AxisType, make_mesh
from vit_jax.errors import UserError
from vit_jax.train import engine, loop, metrics, objectives
from vit_jax.train.masked_autoencoder import KEPT, MaskedAutoencoding, targets
from vit_jax.train.parameter_rules import layer_decay_rules, per_parameter
from vit_jax.train.pretrained import find_pretrained
from vit_jax.tree import arrays, unflatten

PATCH = (8, 8)
TABLES = ("encoder/posembed_input/pos_embedding", "decoder/posembed_input/pos_embedding")
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 16, 32, 3)).astype(np.float32)
MODEL = {
    "family": "mae",
    "patch_size": 8,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 32,
    "decoder": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 16},
}


CLASSIFIER = {k: v for k, v in MODEL.items() if k != "decoder"} | {
    "family": "vit_avg",
    "norm_mean": True,
}


# --- losses ---------------------------------------------------------------------------------------


def test_loss_by_hand():
    """Only removed patches count, all images weigh the same, and what knows all has none."""
    task = MaskedAutoencoding(PATCH, rate=0.5)
    right = targets(jnp.asarray(IMAGES), PATCH, norm_pixels=True)
    batch = {"image": jnp.asarray(IMAGES), KEPT: jnp.tile(jnp.array([[0, 2, 4, 6]]), (4, 1))}
    loss = jax.jit(lambda pred: task.loss((pred,), batch))
    np.testing.assert_allclose(loss(right), np.zeros(4), atol=1e-9)
    np.testing.assert_allclose(loss(right.at[:, ::2].add(5.0)), np.zeros(4), atol=1e-9)
    np.testing.assert_allclose(loss(right.at[1, 3].add(0.5)), [0, 0.25 / 4, 0, 0], atol=1e-6)
    gradient = jax.jit(jax.grad(lambda pred: task.loss((pred,), batch).sum()))(right + 1)
    assert not gradient[:, ::2].any()
    assert gradient[:, 1::2].all()


def test_draws():
    """Three quarters go, others of each image, each patch as often as another."""
    task = MaskedAutoencoding(PATCH)
    batch = {"image": jnp.zeros((400, 32, 64, 1))}
    drawn, asked = task.draw(jax.random.key(0), batch)
    kept = np.asarray(asked[KEPT])
    assert drawn[KEPT] is asked[KEPT]
    assert kept.shape == (400, 8) == (400, task.kept((32, 64, 1)))
    assert all(len(set(row)) == 8 for row in kept)
    # Of 400 draws the share has a deviation of 0.022.
    np.testing.assert_allclose(np.bincount(kept.ravel(), minlength=32) / 400, 0.25, atol=0.08)
    assert len({row.tobytes() for row in kept}) == 400


def test_judge_removes_the_same_patches_of_all_images():
    """Whatever the batch; nothing is counted."""
    task, seen = MaskedAutoencoding(PATCH), []

    def forward(images, kept):
        seen.append(kept)
        return jnp.zeros((len(images), 8, 192)) + images.mean(axis=(1, 2, 3))[:, None, None]

    figures, losses = task.judge(forward, {"image": jnp.asarray(IMAGES)})
    _, alone = task.judge(forward, {"image": jnp.asarray(IMAGES[2:3])})
    assert figures == {}
    np.testing.assert_array_equal(seen[0], np.repeat(seen[1], 4, axis=0))
    np.testing.assert_allclose(losses[2], alone[0], rtol=1e-6)


# --- refusals -------------------------------------------------------------------------------------


def config_of(**changes) -> ConfigDict:
    """The recipe's optimizer and rules, with a tiny model."""
    recipe = mae.get_config()
    config = tiny_run.config("nowhere", **{"pp__crop": 16, "objective": "mae", **changes})
    config.model = ConfigDict(MODEL)
    for field in ("optim", "optim_b1", "optim_b2", "decay_rules", "weight_decay"):
        config[field] = recipe[field]
    config.optim_dtype, config.keep_best = "float32", None
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixing__mixup_alpha": 0.8, "loss": "sigmoid"}, r"config.loss, config.mixing: it pred"),
        ({"label_smoothing": 0.1}, "cannot go with config.label_smoothing"),
        ({"distill__kind": "hard"}, "config.distill.kind"),
        ({"mae__rate": 1.0}, r"config.mae.rate"),
        ({"mae__rate": 0.9}, "leaves none to look at"),
    ],
)
def test_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        objectives.get_task(common.with_defaults(config_of(**changes)), 2)


def test_models_are_refused():
    config = common.with_defaults(tiny_run.config("nowhere", objective="mae"))
    with pytest.raises(UserError, match=r"no decoder of patches: take one of the models mae_vit_"):
        objectives.get_task(config, 2)


# --- devices --------------------------------------------------------------------------------------


def three_steps(devices: Mesh, **changes) -> tuple[list[float], dict[str, np.ndarray]]:
    config = config_of(total_steps=5, warmup_steps=0, optim_eps=1e-2, base_lr=0.01, **changes)
    config.pp.crop = (16, 32)
    built = engine.build(common.with_defaults(config), devices, num_classes=2)
    state, losses = built.init(jax.random.key(0)), []
    labels = np.zeros((8, 2), np.float32)
    images = np.concatenate([IMAGES, -IMAGES])
    batch = jax.device_put({"image": images, "label": labels}, built.batch)
    for _ in range(3):
        state, scalars = built.train_step(state, batch, jax.random.key(1))
        losses.append(float(scalars["loss"]))
    return losses, arrays(jax.device_get(state.params))


def test_several_devices_are_one_device():
    """The noise is that of the whole batch, wherever its images lie."""
    types = (AxisType.Auto,) * 3
    one = jax.make_mesh((1, 1, 1), AXES, axis_types=types, devices=jax.devices()[:1])
    losses, params = three_steps(one)
    assert losses[-1] < losses[0]
    mesh = make_mesh(ConfigDict({"data": 2, "fsdp": 2, "model": 1}))
    several, split = three_steps(mesh, mesh__data=2, mesh__fsdp=2)
    np.testing.assert_allclose(several, losses, rtol=1e-5)
    for name, x in params.items():
        np.testing.assert_allclose(split[name], x, rtol=0, atol=2e-5, err_msg=name)


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_learns_goes_on_and_is_fine_tuned(tmp_path):
    data = tiny_run.write_images(tmp_path / "data")
    changes = {"total_steps": 8, "eval_every": 4, "checkpoint_every": 4, "base_lr": 0.01}
    config = config_of(pp__crop=32, keep_checkpoints=0, **changes)
    config.dataset = str(data)
    workdir = tmp_path / "mae"
    loop.train_and_evaluate(config, str(workdir))
    evaluated = [line for line in metrics.read(workdir) if "loss_test" in line]
    assert evaluated[-1]["loss_test"] < 0.99 * evaluated[0]["loss_test"]
    assert evaluated[-1]["examples_test"] == 10
    assert not any(name.startswith("accuracy") for name in evaluated[-1])

    # Resumed from step 4 it is the same run, bit for bit.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoint_8")
    loop.train_and_evaluate(config, str(again))
    assert tiny_run.stored(again) == tiny_run.stored(workdir)
    assert tiny_run.lines(again) == tiny_run.lines(workdir)

    # The tables of positions stay, the tokens do not.
    trained = inference.load_weights(workdir).variables["params"]
    fresh = models.from_config(config.model).init(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 4), jnp.int32), train=False
    )["params"]
    flat, before = arrays(trained), arrays(fresh)
    for name in TABLES:
        np.testing.assert_array_equal(flat[name], before[name])

    # Its encoder is what a classifier begins with.
    tuned = tiny_run.config(data, pretrained=str(workdir))
    tuned.model = ConfigDict(CLASSIFIER)
    shapes = names.expected_shapes(CLASSIFIER, num_classes=2, image_size=(32, 32))
    found = arrays(
        checkpoint.load_pretrained(
            pretrained_path=find_pretrained(common.with_defaults(tuned)),
            init_params=unflatten({n: np.full(s, 7, np.float32) for n, s in shapes.items()}),
            model_config=tuned.model,
        )
    )
    own = {name for name, x in found.items() if (x == 7).all()}
    assert own == {"fc_norm/bias", "fc_norm/scale", "head/bias", "head/kernel"}
    for name in found.keys() - own:
        np.testing.assert_array_equal(found[name], flat[f"encoder/{name}"], err_msg=name)


# --- recipes --------------------------------------------------------------------------------------


def test_what_decays_and_what_is_frozen():
    """Kernels and both tokens, and nothing of one dimension: the official code's groups."""
    config = common.with_defaults(mae.get_config())
    model = models.from_config(MODEL)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(
        init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 1), jnp.int32)
    )["params"]
    decay = arrays(per_parameter(config.decay_rules, shapes, "decay_rules"))
    assert {name for name, x in decay.items() if x} == {
        name for name in decay if name.endswith(("/kernel", "/cls", "/mask_token"))
    }
    assert (config.base_lr, config.lr_scaling.batch, config.optim_b2) == (1.5e-4, 256, 0.95)
    assert config.mae.to_dict() == {"rate": 0.75, "norm_pixels": True}


@pytest.mark.parametrize(("size", "decay", "rate"), [("b16", 0.65, 5e-4), ("h14", 0.75, 1e-3)])
def test_the_fine_tuning_recipe(size, decay, rate):
    config = common.with_defaults(mae_finetune.get_config(size))
    assert (config.layer_decay, config.base_lr) == (decay, rate)
    model = models.from_config(CLASSIFIER, num_classes=2)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    rates = arrays(per_parameter(layer_decay_rules(decay, params), params, "lr_rules"))
    assert rates["posembed_input/pos_embedding"] == rates["cls"] == decay**3
    assert rates["fc_norm/scale"] == rates["head/kernel"] == 1


def test_a_fine_tuning_run_without_a_checkpoint_is_refused():
    config = common.with_defaults(mae_finetune.get_config())
    with pytest.raises(UserError, match=r"--config.pretrained names any other checkpoint or run"):
        find_pretrained(config)

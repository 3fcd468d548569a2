"""Contrastive learning: recorded losses and gradients, any cut of the batch, memory, and a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contrast import learned, loss_and_grad, total, vectors
from recipes import golden_json
from two_towers import TinyTowers

from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh, replicated, split_batch
from vit_jax.errors import UserError
from vit_jax.train import objectives
from vit_jax.train.contrastive import LOSSES, Contrastive
from vit_jax.train.state import init_state
from vit_jax.train.step import make_train_step

GOLDEN = golden_json("lit/contrastive_golden.json")


@pytest.mark.parametrize("rows", [8, 3])
def test_recorded_figures(rows):
    with jax.enable_x64(True):
        run = jax.jit(loss_and_grad("softmax", rows))
        (_, means), grads = run(*vectors(), *learned(np.float64))
        for figure, name in (
            ("loss", "loss"),
            ("i2t_loss", "image_to_text_loss"),
            ("t2i_loss", "text_to_image_loss"),
        ):
            # But for the last bits, in which the two recorded runs differ from each other too.
            for devices in ("softmax_1dev", "softmax_2dev"):
                np.testing.assert_allclose(means[name], GOLDEN[devices][figure], rtol=1e-14)
        for found, name in zip(grads, ("grad_zimg", "grad_ztxt", "grad_t_param"), strict=False):
            # They are recorded to twelve decimal places.
            np.testing.assert_allclose(np.squeeze(found), GOLDEN[name], rtol=0, atol=1e-12)
        assert abs(grads[3]) < 1e-15  # A bias of all scores changes no softmax.
        sigmoid, _ = jax.jit(functools.partial(total, "sigmoid", rows))(
            *vectors(), *learned(np.float64)
        )
        np.testing.assert_allclose(sigmoid, GOLDEN["sigmoid_2dev_mean"], rtol=1e-14)


def test_gradients_of_the_sigmoid_loss_are_those_of_its_formula():
    def formula(zimg, ztxt, t_param, b):
        scores = jnp.exp(t_param[0]) * zimg @ ztxt.T + b[0]
        y = 2 * jnp.eye(len(zimg)) - 1
        return -jax.nn.log_sigmoid(y * scores).sum() / len(zimg)

    with jax.enable_x64(True):
        given = *vectors(), *learned(np.float64)
        wanted = jax.jit(jax.grad(formula, (0, 1, 2, 3)))(*given)
        _, found = jax.jit(loss_and_grad("sigmoid", 4))(*given)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)
            assert np.abs(other).max() > 1e-2


def compiled(name: str, rows: int, devices: int, count: int = 32, dtype=jnp.float32):
    """Loss, figures and gradients of a batch that lies split over devices."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    split, full = split_batch(mesh), replicated(mesh)
    given = (split, split, full, full)
    shapes = [jax.ShapeDtypeStruct((count, 16), dtype)] * 2 + [
        jax.ShapeDtypeStruct((1,), dtype)
    ] * 2
    made = jax.jit(loss_and_grad(name, rows), in_shardings=given, out_shardings=(full, given))
    return made.lower(*shapes).compile()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_any_cut_over_devices_and_rows_is_the_whole(name, dtype, most):
    with jax.enable_x64(dtype == np.float64):
        given = [x.astype(dtype) for x in (*vectors(32), *learned(dtype))]
        wanted = jax.jit(loss_and_grad(name, 32))(*given)
        for devices, rows in ((4, 8), (1, 5)):
            run = compiled(name, rows, devices, dtype=dtype)
            found = run(*map(jax.device_put, given, run.input_shardings[0]))
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                assert one.dtype == dtype
                np.testing.assert_allclose(one, other, rtol=most, atol=most)
        # Negatives of one device's share alone would be another loss.
        half = total(name, 32, given[0][:16], given[1][:16], *given[2:])[0]
    assert abs(float(half) / float(wanted[0][0]) - 1) > 0.1


@pytest.mark.parametrize("name", LOSSES)
def test_memory_does_not_grow_with_the_square_of_the_batch(name):
    def temporary(rows: int, count: int) -> int:
        return compiled(name, rows, 1, count).memory_analysis().temp_size_in_bytes

    larger = temporary(64, 4096)
    assert larger < 2.2 * temporary(64, 2048)
    assert temporary(4096, 4096) > 10 * larger  # all scores at once


# --- the task ------------------------------------------------------------------------------------


def config(**changes):
    made = common.get_config()
    made.objective, made.accum_steps, made.text.length = "contrastive", 1, 5
    made.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return common.with_defaults(made)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_reports_what_the_loss_is_made_of(name):
    task = objectives.get_task(config(contrastive__loss=name), 0)
    model, tx = TinyTowers(bias=name == "sigmoid"), optax.sgd(0.1)
    task.check(model)
    state = init_state(model, tx, jax.random.key(0), image_size=4, beside=task.beside)
    assert set(state.params) == {"img", "txt", "t"} | ({"b"} if name == "sigmoid" else set())
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((8, 4, 4, 3)).astype(np.float32),
        "tokens": rng.integers(0, 64, (8, 5)).astype(np.int32),
    }
    step = jax.jit(make_train_step(model, tx, objective=task.loss, draw=task.draw))
    losses = []
    for _ in range(30):
        before = state.params
        state, scalars = step(state, batch, jax.random.key(1))
        np.testing.assert_allclose(scalars["t"], np.exp(before["t"][0]), rtol=1e-6)
        losses.append(float(scalars["loss"]))
    assert losses[-1] < losses[0] / 2
    if name == "softmax":
        halves = scalars["image_to_text_loss"], scalars["text_to_image_loss"]
        np.testing.assert_allclose(sum(halves) / 2, scalars["loss"], rtol=1e-6)
    else:
        np.testing.assert_allclose(scalars["b"], before["b"][0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accum_steps": 8}, r"cannot go with config\.accum_steps: "),
        (
            {"accum_steps": 2, "mixing__mixup_alpha": 0.2, "label_smoothing": 0.1},
            r"config\.accum_steps, config\.label_smoothing, config\.mixing: ",
        ),
        ({"distill__kind": "soft", "data__repeats": 3}, r"config\.data\.repeats, config\.distill"),
        ({"loss": "sigmoid"}, r"config\.loss: .* Its own loss is config\.contrastive\.loss"),
        ({"contrastive__loss": "sigmod"}, "unknown contrastive.loss 'sigmod'. Did you mean 'sigm"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(UserError, match=message):
        objectives.get_task(config(**changes), 0)


def test_a_model_without_texts_or_bias_is_refused():
    from vit_jax.models import get_model

    with pytest.raises(UserError, match="cannot train VisionTransformer, which takes no texts"):
        objectives.get_task(config(), 0).check(get_model("ViT-Ti_16"))
    z, t = np.ones((2, 3), np.float32), np.ones(1, np.float32)
    with pytest.raises(UserError, match="needs a model with a bias of the scores"):
        Contrastive("sigmoid").losses(((z, z, {"t": t}),), {})

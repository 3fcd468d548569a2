"""SAM and GSAM against their formulas, in float64, where the gradient is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vit_jax.train.sam import gsam_rho, sam_gradient
from vit_jax.train.state import TrainState
from vit_jax.train.step import make_train_step

RNG = np.random.default_rng(0)
A, W = RNG.normal(size=(3, 3)), RNG.normal(size=3)
B = RNG.normal(size=2)


def by_hand(w, b):
    """Loss Σ(Aw)⁴/4 + Σb³/3 + w₀·b₀, and its gradient."""
    loss = ((A @ w) ** 4).sum() / 4 + (b**3).sum() / 3 + w[0] * b[0]
    grad_w = A.T @ (A @ w) ** 3 + np.array([b[0], 0, 0])
    return loss, np.concatenate([grad_w, b**2 + np.array([w[0], 0])])


def loss_and_grad(params):
    def loss(params):
        w, b = params["w"], params["inner"]["b"]
        return jnp.sum((jnp.asarray(A, w.dtype) @ w) ** 4) / 4 + jnp.sum(b**3) / 3 + w[0] * b[0]

    return jax.value_and_grad(loss)(params)


def run(**settings) -> tuple[float, np.ndarray]:
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(W), "inner": {"b": jnp.asarray(B)}}
        loss, grad = jax.jit(lambda p: sam_gradient(loss_and_grad, p, **settings))(params)
        assert grad["w"].dtype == jnp.float64
        return float(loss), np.concatenate([grad["w"], grad["inner"]["b"]])


def perturbed(rho: float) -> tuple[np.ndarray, np.ndarray]:
    _, clean = by_hand(W, B)
    up = np.concatenate([W, B]) + rho * clean / np.linalg.norm(clean)
    return clean, by_hand(up[:3], up[3:])[1]


@pytest.mark.parametrize("rho", [0.02, 0.3])
def test_sam(rho):
    loss, grad = run(rho=rho)
    clean, want = perturbed(rho)
    np.testing.assert_allclose(loss, by_hand(W, B)[0], rtol=1e-12)
    np.testing.assert_allclose(grad, want, rtol=1e-9)
    assert np.abs(grad - clean).max() > 1e-3 * np.abs(clean).max()


@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_gsam(alpha):
    clean, up = perturbed(0.3)
    unit = up / np.linalg.norm(up)
    across = clean - (clean @ unit) * unit
    _, grad = run(rho=0.3, alpha=alpha)
    np.testing.assert_allclose(grad, up - alpha * across, rtol=1e-9)
    assert np.linalg.norm(across) > 1e-2 * np.linalg.norm(clean)
    np.testing.assert_allclose(across @ up, 0, atol=1e-9)


def test_rho_zero_is_the_plain_gradient():
    _, grad = run(rho=0.0)
    with jax.enable_x64(True):
        _, want = jax.jit(loss_and_grad)({"w": jnp.asarray(W), "inner": {"b": jnp.asarray(B)}})
        want = np.concatenate([want["w"], want["inner"]["b"]])
    np.testing.assert_array_equal(grad, want)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_zero_gradient_stays_zero(alpha):
    zeros = {"w": jnp.zeros(3), "inner": {"b": jnp.zeros(2)}}
    _, grad = sam_gradient(loss_and_grad, zeros, rho=0.1, alpha=alpha)
    for leaf in jax.tree.leaves(grad):
        np.testing.assert_array_equal(leaf, 0)


def test_rho_follows_the_learning_rate():
    kw = {"rate_max": 0.4, "rho_max": 0.6, "rho_min": 0.1}
    np.testing.assert_allclose([gsam_rho(r, **kw) for r in (0.4, 0.2, 0.0)], [0.6, 0.35, 0.1])


# --- in the training step ------------------------------------------------------------------------

RHO, ALPHA = 0.3, 0.4
STEP_IMAGES = RNG.uniform(-1, 1, (8, 2, 2, 3))
STEP_LABELS = np.eye(4)[RNG.integers(0, 4, 8)]


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(4, name="head", param_dtype=jnp.float64)(x.reshape(x.shape[0], -1))


def softmax_gradient(kernel: np.ndarray, rows: slice) -> tuple[float, np.ndarray]:
    """Mean cross-entropy of a linear model without bias, and its gradient, by hand."""
    x, y = STEP_IMAGES[rows].reshape(-1, 12), STEP_LABELS[rows]
    logits = x @ kernel
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -(y * np.log(p)).sum(-1).mean(), x.T @ (p - y) / len(x)


def gsam_by_hand(kernel: np.ndarray, rows: slice) -> tuple[float, np.ndarray]:
    loss, clean = softmax_gradient(kernel, rows)
    _, up = softmax_gradient(kernel + RHO * clean / np.linalg.norm(clean), rows)
    unit = up / np.linalg.norm(up)
    return loss, up - ALPHA * (clean - (clean * unit).sum() * unit)


def one_step(accum_steps: int, per_part: bool) -> tuple[float, np.ndarray]:
    """Loss and gradient of one step, from the update of plain SGD with rate 1."""
    with jax.enable_x64(True):
        kernel = jnp.asarray(np.random.default_rng(1).normal(size=(12, 4)))
        params = {"head": {"kernel": kernel, "bias": jnp.zeros(4)}}
        tx = optax.sgd(1.0)
        step = make_train_step(
            Linear(),
            tx,
            accum_steps=accum_steps,
            sharpen=lambda f, p, _: sam_gradient(f, p, rho=RHO, alpha=ALPHA),
            sharpen_parts=per_part,
            # The bias would have its share of the norm.
            trained=lambda p: {"head": {**p["head"], "bias": jax.lax.stop_gradient(jnp.zeros(4))}},
        )
        state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
        batch = {"image": jnp.asarray(STEP_IMAGES), "label": jnp.asarray(STEP_LABELS)}
        new, scalars = jax.jit(step)(state, batch, jax.random.key(0))
        return float(scalars["loss"]), np.asarray(kernel - new.params["head"]["kernel"])


def test_each_part_is_perturbed_on_its_own():
    kernel = np.random.default_rng(1).normal(size=(12, 4))
    whole = gsam_by_hand(kernel, slice(None))
    parts = [gsam_by_hand(kernel, slice(i, None, 2)) for i in range(2)]
    of_parts = np.mean([loss for loss, _ in parts]), np.mean([grad for _, grad in parts], axis=0)
    for (accum_steps, per_part), (loss, grad) in {
        (1, False): whole,
        (1, True): whole,
        (2, False): whole,
        (2, True): of_parts,
    }.items():
        got_loss, got = one_step(accum_steps, per_part)
        np.testing.assert_allclose(got_loss, loss, rtol=1e-9)
        np.testing.assert_allclose(got, grad, rtol=0, atol=1e-9 * np.abs(grad).max())
    assert np.abs(of_parts[1] - whole[1]).max() > 1e-2 * np.abs(whole[1]).max()

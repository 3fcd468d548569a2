"""SAM and GSAM against their formulas, in float64, where the gradient is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.train.sam import gsam_rho, sam_gradient

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

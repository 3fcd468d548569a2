"""Losses against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.train.losses import LOSSES, get_loss, init_head_bias, of_heads, smooth_labels

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (4, 5))
SOFT = RNG.dirichlet(np.ones(5), 4)
SEVERAL = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0.3, 0.7]])


def binary(labels):
    p = 1 / (1 + np.exp(-LOGITS))
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p))


def softmax(labels):
    return -(labels * (LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True)))).sum(-1)


CASES = {
    "softmax": (SOFT, softmax),
    "sigmoid": (SEVERAL, lambda labels: binary(labels).sum(-1)),
    "multilabel": (SEVERAL, lambda labels: binary(labels > 0).mean(-1)),
}


def test_every_loss_has_a_case():
    assert CASES.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_value(name):
    labels, reference = CASES[name]
    got = get_loss(name)(jnp.float32(LOGITS), jnp.float32(labels))
    assert got.shape == (4,)
    np.testing.assert_allclose(got, reference(labels), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_are_widened_and_extreme_ones_stay_finite(name):
    labels = jnp.eye(3)
    loss, grad = jax.value_and_grad(lambda x: get_loss(name)(x, labels).sum())(
        jnp.bfloat16([[200, -200, 0], [-200, 200, 0], [0, 200, -200]])
    )
    assert loss.dtype == jnp.float32
    assert grad.dtype == jnp.bfloat16
    assert np.isfinite(loss)
    assert np.isfinite(grad.astype(jnp.float32)).all()


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_label_smoothing(name):
    _, reference = CASES[name]
    labels = np.eye(5)[[0, 1, 2, 4]]
    smooth = np.where(labels == 1, 0.9 + 0.1 / 5, 0.1 / 5)
    np.testing.assert_allclose(smooth_labels(jnp.float32(labels), 0.1), smooth, rtol=1e-6)
    np.testing.assert_allclose(smooth.sum(-1), 1)
    got = get_loss(name, label_smoothing=0.1)(jnp.float32(LOGITS), jnp.float32(labels))
    np.testing.assert_allclose(got, reference(smooth), rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("softmx",), "Did you mean 'softmax'"),
        (("softmax", 1.0), r"config.label_smoothing must be in \[0, 1\), got 1.0"),
        (("softmax", -0.1), r"must be in \[0, 1\), got -0.1"),
        (("multilabel", 0.1), "loss='sigmoid'"),
    ],
    ids=str,
)
def test_bad_settings(args, message):
    with pytest.raises(UserError, match=message):
        get_loss(*args)


def test_head_bias():
    params = {"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "cls": jnp.zeros(2)}
    got = init_head_bias(params, -6.9)
    np.testing.assert_allclose(got["head"]["bias"], [-6.9] * 3, rtol=1e-6)
    assert got["head"]["kernel"] is params["head"]["kernel"]
    assert got["cls"] is params["cls"]
    np.testing.assert_array_equal(params["head"]["bias"], 0)
    with pytest.raises(UserError, match="no parameter 'head/bias'"):
        init_head_bias({"cls": jnp.zeros(2)}, -6.9)


def test_heads_count_alike():
    """One array, a tuple of heads, and a head whose logits are for tokens."""
    labels, reference = CASES["softmax"]
    tokens = RNG.normal(0, 3, (4, 2, 3, 5))
    by_token = np.stack([-(labels[:, None, None] * log_softmax(tokens)).sum(-1)]).mean((0, 2, 3))
    batch = {"label": jnp.float32(labels)}
    of = of_heads(get_loss("softmax"))
    np.testing.assert_allclose(of([jnp.float32(LOGITS)], batch), reference(labels), rtol=1e-5)
    np.testing.assert_allclose(of([jnp.float32(tokens)], batch), by_token, rtol=1e-5)
    both = of((jnp.float32(LOGITS), jnp.float32(tokens)), batch)
    np.testing.assert_allclose(both, (reference(labels) + by_token) / 2, rtol=1e-5)
    # Nothing is added to the loss of one head.
    alone = get_loss("softmax")(jnp.float32(LOGITS), batch["label"])
    np.testing.assert_array_equal(of([jnp.float32(LOGITS)], batch), alone)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))

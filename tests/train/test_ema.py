"""The moving average of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.train.ema import ema_decay, update_ema


def test_average():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 3)).astype(np.float32)
    ema, want = {"a": jnp.asarray(values[0])}, values[0].astype(np.float64)
    update = jax.jit(lambda e, p, step: update_ema(e, p, ema_decay(step, 0.5, warmup=True)))
    for step, value in enumerate(values[1:]):
        ema = update(ema, {"a": value}, step)
        decay = min(0.5, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * value
    np.testing.assert_allclose(ema["a"], want, rtol=1e-5)


def test_decay():
    warm = [float(ema_decay(step, 0.99, warmup=True)) for step in (0, 90, 100_000)]
    np.testing.assert_allclose(warm, [0.1, 0.91, 0.99], rtol=1e-6)
    np.testing.assert_allclose(ema_decay(0, 0.99, warmup=False), 0.99, rtol=1e-6)


def test_what_does_not_change_is_its_own_average_to_the_last_bit():
    x = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    got = jax.jit(update_ema)(jnp.asarray(x), jnp.asarray(x), 0.99)
    np.testing.assert_array_equal(got, x)
    # Negative control: the textbook form rounds.
    assert (np.float32(0.99) * x + (1 - np.float32(0.99)) * x != x).any()


def test_types_are_kept():
    ema = update_ema(
        {"a": jnp.zeros(2, jnp.bfloat16)}, {"a": jnp.ones(2)}, ema_decay(0, 0.9, warmup=False)
    )
    assert ema["a"].dtype == jnp.bfloat16

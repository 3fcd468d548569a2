"""Learning rates; cosine and linear stand against the original's figures in test_golden.py."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.train.schedules import create_learning_rate_schedule


def rates(steps, **settings) -> np.ndarray:
    schedule = create_learning_rate_schedule(**settings)
    return np.array([schedule(step) for step in steps])


def test_rsqrt_with_warmup_and_cooldown():
    settings = {
        "total_steps": 1000,
        "base": 0.5,
        "decay_type": "rsqrt",
        "warmup_steps": 100,
        "timescale": 200,
        "cooldown_steps": 300,
    }
    got = rates([0, 50, 100, 300, 700, 850, 1000, 1200], **settings)
    want = [
        0,
        0.25,
        0.5,
        0.5 / np.sqrt(2),
        0.5 / np.sqrt(4),
        0.5 * 0.5 / np.sqrt(1 + 750 / 200),
        0,
        0,
    ]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_rsqrt_is_one_over_the_root_of_the_step_where_timescale_is_the_warmup():
    got = rates(
        [10, 40, 90],
        total_steps=100,
        base=1.0,
        decay_type="rsqrt",
        warmup_steps=10,
        timescale=10,
    )
    np.testing.assert_allclose(got, [1, 1 / 2, 1 / 3], rtol=1e-6)


def test_constant_and_the_cooldown_of_any_decay():
    constant = {"total_steps": 10, "base": 2.0, "decay_type": "constant", "warmup_steps": 2}
    np.testing.assert_allclose(rates(range(4), **constant), [0, 1, 2, 2])
    np.testing.assert_allclose(
        rates([6, 8, 9, 10], **constant, cooldown_steps=4), [2, 1, 0.5, 0], rtol=1e-6
    )


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_a_warmup_that_is_longer_than_the_run_is_a_warning(decay, caplog):
    """The figures are those of the original's formula."""
    caplog.set_level("WARNING", "absl")
    got = rates([0, 1, 2], total_steps=3, base=2.0, decay_type=decay, warmup_steps=8)
    assert "the run ends within the warm-up" in caplog.text
    progress = np.clip((np.arange(3) - 8) / (3 - 8), 0, 1)
    decayed = {"cosine": 1 + np.cos(np.pi * progress), "linear": 1e-5 + (2 - 1e-5) * (1 - progress)}
    np.testing.assert_allclose(got, decayed[decay] * np.arange(3) / 8, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay_type": "rsqr"}, "Did you mean 'rsqrt'"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer of at least 0 or"),
        ({"cooldown_steps": 9}, "cooldown_steps=9 must be from 0 to the 8 steps"),
        ({"timescale": 0}, "lr_timescale must be"),
    ],
    ids=str,
)
def test_bad_settings(changes, message):
    settings = {"total_steps": 10, "base": 1.0, "decay_type": "rsqrt", "warmup_steps": 2} | changes
    with pytest.raises(UserError, match=message):
        create_learning_rate_schedule(**settings)

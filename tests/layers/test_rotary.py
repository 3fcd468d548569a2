"""Rotary positions against turning complex numbers, and where a layer puts them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.rotary import axial_angles, in_halves, in_pairs, rotate_halves, rotate_pairs

ANGLES = axial_angles(np.arange(3.0), np.arange(5.0), np.array([1.0, 0.1]))


def turned(x, first, second):
    """The channels `first` and `second` of a head as complex numbers, turned by `ANGLES`."""
    z = (x[..., first] + 1j * x[..., second]) * np.exp(1j * ANGLES)[None, :, None]
    y = np.empty_like(x)
    y[..., first], y[..., second] = z.real, z.imag
    return y


def test_angles_are_the_rows_then_the_columns():
    assert ANGLES.shape == (15, 4)
    np.testing.assert_allclose(ANGLES[7], [1, 0.1, 2, 0.2])


@pytest.mark.parametrize(
    ("table", "rotate", "first", "second"),
    [
        (in_halves, rotate_halves, slice(0, 4), slice(4, 8)),
        (in_pairs, rotate_pairs, slice(0, 8, 2), slice(1, 8, 2)),
    ],
)
def test_channels_turn_as_complex_numbers_and_first_tokens_stay(table, rotate, first, second):
    x = np.random.default_rng(0).standard_normal((2, 17, 3, 8))
    with jax.enable_x64(True):
        y = np.asarray(rotate(jnp.asarray(x), table(ANGLES)))
    np.testing.assert_array_equal(y[:, :2], x[:, :2])
    np.testing.assert_allclose(y[:, 2:], turned(x[:, 2:], first, second), atol=1e-12)


def test_a_table_may_differ_by_example():
    x = jax.random.normal(jax.random.key(0), (2, 15, 3, 8))
    both = in_halves(np.stack([ANGLES, 2 * ANGLES]))
    y = rotate_halves(x, both)
    np.testing.assert_array_equal(y[:1], rotate_halves(x[:1], in_halves(ANGLES)))
    np.testing.assert_array_equal(y[1:], rotate_halves(x[1:], in_halves(2 * ANGLES)))


def test_only_distances_count():
    """Attention sees by how much two tokens lie apart: all angles may grow by the same."""
    layer = MultiHeadDotProductAttention(num_heads=2)
    x = jax.random.normal(jax.random.key(0), (2, 15, 16))
    variables = layer.init(jax.random.key(1), x, train=False)

    @jax.jit
    def attend(angles):
        return layer.apply(variables, x, train=False, rotary=in_halves(angles))

    y = attend(ANGLES)
    np.testing.assert_allclose(attend(ANGLES + 0.7), y, atol=2e-6)
    assert abs(attend(1.5 * ANGLES) - y).max() > 1e-3

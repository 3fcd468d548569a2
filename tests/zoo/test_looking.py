"""Looking inside any model changes nothing, and its rows of attention weights add up to 1."""

import functools

import jax
import numpy as np
import pytest
from zoo_table import ROWS, case

from vit_jax.evaluate.inside import look_inside

# One of each kind of attention; the rest of the battery's table is slow.
KINDS = (
    "vit",
    "dinov2_registers",
    "beit",
    "cait",
    "deepvit",
    "refiner",
    "siglip_vision",
    "swin",
    "pvt",
)
WITHOUT = {"mixer", "vt"}  # no attention through `attend` whose weights are shown


@pytest.mark.parametrize(
    "key", [k if k in KINDS else pytest.param(k, marks=pytest.mark.slow) for k in ROWS]
)
def test_looking_changes_nothing_and_rows_add_up_to_1(key):
    this = case(key)
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), this.variables)
    images = this.images.astype(np.float32)
    plain = jax.jit(functools.partial(this.model.apply, train=False))(variables, images)
    seen = jax.jit(functools.partial(look_inside, this.model))(variables, images)
    np.testing.assert_array_equal(seen.output, plain)
    assert seen.weights or ROWS[key].family in WITHOUT
    for weights in seen.weights.values():
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=2e-6)
        assert weights.shape[-1] == 1 or np.asarray(weights).std() > 0
    assert all(x.ndim == 3 and len(x) == len(images) for x in seen.blocks.values())

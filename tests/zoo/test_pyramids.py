"""What families have in common whose stages are a pyramid of maps, beside the battery's tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from zoo_table import case

from vit_jax.errors import UserError
from vit_jax.layers.drop import DropPath
from vit_jax.models import feature_maps, from_config
from vit_jax.parity.figures import FLOAT64_BAR

FAMILIES = ("swin", "pvt_v2", "twins", "pvt", "cvt")


@pytest.mark.parametrize("key", ["pvt", "cvt"])
def test_what_hugging_face_ships_is_another_formula(key):
    this = case(key)
    assert this.error(this.reference(matched=False)) > FLOAT64_BAR


@pytest.mark.parametrize(("key", "strides"), [("pvt", (4, 8, 16, 32)), ("cvt", (4, 8, 16))])
def test_feature_map_shapes(key, strides):
    this = case(key)
    maps = jax.eval_shape(functools.partial(feature_maps, this.model), this.variables, this.images)
    wanted = [
        (2, -(-this.size[0] // s), -(-this.size[1] // s), width)
        for s, width in zip(strides, this.config["hidden_sizes"], strict=True)
    ]
    assert [x.shape for x in maps] == wanted


@pytest.mark.parametrize("key", FAMILIES)
def test_stochastic_depth_grows_over_the_blocks(key):
    """Linearly over all of them; in CvT over those of the last stage alone."""
    this = case(key)
    model = this.model.clone(drop_path_rate=0.5)
    rates = []

    def record(run, args, kwargs, context):
        if isinstance(context.module, DropPath):
            rates.append(args[1])
        return run(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(
            functools.partial(model.apply, train=True, mutable=["batch_stats"]),
            this.variables,
            this.images,
            rngs={"dropout": jax.random.key(0)},
        )
    depths = this.config["depths"]
    wanted = np.linspace(0, 0.5, sum(depths))
    if key == "cvt":
        wanted = np.concatenate([np.zeros(sum(depths[:-1])), np.linspace(0, 0.5, depths[-1])])
    np.testing.assert_allclose(rates, np.repeat(wanted, 2), atol=1e-12)


def step(key: str):
    """A gradient in bfloat16 with blocks dropped and computed again, and its arguments."""
    this = case(key)
    model = this.model.clone(dtype=jnp.bfloat16, drop_path_rate=0.1, remat=True)

    def loss(params, rest, images):
        variables = {**rest, "params": params}
        rngs = {"dropout": jax.random.key(0)}
        logits, _ = model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
        assert logits.dtype == jnp.float32
        return (logits**2).mean()

    rest = {k: v for k, v in this.variables.items() if k != "params"}
    images = this.images.astype(np.float32)
    return jax.grad(loss), (this.variables["params"], rest, images)


@pytest.mark.parametrize("key", FAMILIES)
def test_a_step_in_bfloat16_has_float32_gradients(key):
    gradient, args = step(key)
    for path, g in jax.tree_util.tree_leaves_with_path(jax.eval_shape(gradient, *args)):
        assert g.dtype == jnp.float32, path


def test_a_step_in_bfloat16_is_finite():
    """Where there is most of everything: batch statistics, and a class token."""
    gradient, args = step("cvt")
    for path, g in jax.tree_util.tree_leaves_with_path(jax.jit(gradient)(*args)):
        assert np.isfinite(g).all(), path


@pytest.mark.parametrize("key", ["pvt_v2", "twins", "pvt"])
def test_images_that_are_too_small(key):
    this = case(key)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), "float32")
    with pytest.raises(UserError, match="take larger images"):
        jax.eval_shape(functools.partial(this.model.init, train=False), jax.random.key(0), images)


def test_a_class_token_lies_on_no_map():
    config = case("pvt").config | {"sr_ratios": (8, 4, 2, 2)}
    model = from_config(config, num_classes=7)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    with pytest.raises(UserError, match="the last one must be 1"):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)

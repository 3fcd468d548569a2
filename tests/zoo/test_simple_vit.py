"""SimpleViT against our Vision Transformer, beside its figures in test_official.py."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from zoo_cases import Case, change_encoder
from zoo_figures import official
from zoo_golden import Golden

from vit_jax.layers.block import google_block, vit_block
from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.sincos import sincos2d
from vit_jax.models import get_model, simple_vit
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours
from vit_jax.tree import arrays, unflatten

NAME = "simple_vit_s_16"


def test_features_are_what_the_head_gets():
    this = official("bv_simplevit_tiny")
    model, variables, golden = this.model, this.variables, this.golden
    params = {k: x for k, x in variables["params"].items() if k != "head"}
    features = trace_ours(
        model.clone(num_classes=0), {"params": params}, golden.images, [], np.float64
    )
    assert relative_error(features.logits, golden.figures["mid_head_input"]) <= FLOAT64_BAR


def erf_block(num_heads: int, mlp_dim: int, **fields):
    return vit_block(num_heads, mlp_dim, **fields)


def wide_block(num_heads: int, mlp_dim: int, **fields):
    """LayerNorm with PyTorch's eps."""
    return vit_block(num_heads, mlp_dim, activation=nn.gelu, norm=LayerNorm5, **fields)


def test_another_formula_is_seen(monkeypatch):
    def error(**factories) -> float:
        change_encoder(monkeypatch, simple_vit, **factories)
        return official("bv_simplevit_tiny").logits_error()

    assert error(block=google_block) <= FLOAT64_BAR
    assert error(block=erf_block) > FLOAT64_BAR
    assert error(block=wide_block) > FLOAT64_BAR
    assert error(norm=LayerNorm5) > FLOAT64_BAR


def test_rows_and_columns_are_not_exchanged():
    """On a grid that is not square the positions of the transposed one are others."""
    table = sincos2d((5, 7), 24, dtype=np.float64)
    golden = Golden("bv_simplevit_tiny").figures
    stem = golden["mid_stem"].reshape(2, 35, 24)
    wanted = golden["mid_with_posemb"] - stem
    np.testing.assert_allclose(np.broadcast_to(table, wanted.shape), wanted, atol=1e-14)
    transposed = sincos2d((7, 5), 24, dtype=np.float64)
    transposed = transposed.reshape(7, 5, 24).swapaxes(0, 1).reshape(1, 35, 24)
    assert np.abs(transposed - table).max() > 0.1


@pytest.fixture(scope="module")
def twin():
    """A Vision Transformer with mean pooling whose learned positions are these sines."""
    this = Case(NAME, (48, 80), layout="big_vision", num_layers=2)
    vit = get_model("ViT-S_16-gap-norep", num_classes=7, transformer={"num_layers": 2})
    table = {"Transformer/posembed_input/pos_embedding": sincos2d((3, 5), 384, dtype=np.float64)}
    return this, vit, unflatten({**this.flat, **table})


def test_logits_and_gradients_are_our_vision_transformers(twin):
    """That one is proven against timm."""
    this, vit, params = twin
    weights = np.random.default_rng(2).standard_normal((2, 7))

    def total(model, params, images):
        return (model.apply({"params": params}, images, train=False) * weights).sum()

    with jax.enable_x64(True):
        both = []
        for model, tree in ((this.model, this.variables["params"]), (vit, params)):
            wide = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
            gradient = jax.jit(jax.value_and_grad(functools.partial(total, model)))
            both.append(jax.device_get(gradient(wide, this.images)))
    (one, ours), (other, theirs) = both
    assert abs(one - other) <= 1e-12 * abs(other)
    theirs = arrays(theirs)
    for name, x in arrays(ours).items():
        np.testing.assert_allclose(x, theirs[name], rtol=0, atol=1e-9 * np.abs(theirs[name]).max())


def test_any_image_size_takes_the_same_parameters():
    model = get_model(NAME, num_classes=7, num_layers=1)
    shapes = [
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), np.ones((1, *s, 3)))
        for s in ((32, 32), (48, 80))
    ]
    assert shapes[0] == shapes[1]


def test_initial_values_are_big_visions():
    model = get_model(NAME, num_classes=7, num_layers=1)
    images = np.ones((1, 32, 32, 3), np.float32)
    params = arrays(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images))
    params = {name.removeprefix("params/"): np.asarray(x) for name, x in params.items()}
    assert not params["head/kernel"].any()
    assert not params["head/bias"].any()
    block = "Transformer/encoderblock_0"
    kernel = params[f"{block}/MlpBlock_0/Dense_0/kernel"]
    limit = (6 / sum(kernel.shape)) ** 0.5  # of Glorot's uniform distribution
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_allclose(params[f"{block}/MlpBlock_0/Dense_0/bias"].std(), 1e-6, rtol=0.1)

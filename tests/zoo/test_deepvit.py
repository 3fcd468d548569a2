"""DeepViT against figures of the official code, which no package holds."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import linen as nn
from zoo_cases import config_of
from zoo_golden import FOLDER, Golden

from vit_jax.checkpoint import from_torch, to_torch
from vit_jax.families.sizes import recorded
from vit_jax.layers.norm import LayerNorm5
from vit_jax.models import deepvit, from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours
from vit_jax.tree import arrays
from vit_jax.variables import named

PLAIN, STEM = "deepvit_reattn_tiny", "deepvit_S_tiny"
REGISTERED = {PLAIN: "deepvit_patch16_224_re_attn_16b", STEM: "deepvit_S"}
SIZES = {"hidden_size": 24, "num_layers": 3, "num_heads": 3, "mlp_dim": 72}
REATTENTION_LAYERS = {PLAIN: 3, STEM: 2}

# Numbers of parameters in the official code, buffers left out.
COUNTS = {
    "deepvit_patch16_224_re_attn_16b": 24_426_664,
    "deepvit_patch16_224_re_attn_24b": 36_261_448,
    "deepvit_patch16_224_re_attn_32b": 48_096_232,
    "deepvit_S": 27_312_632,
    "deepvit_L": 58_883_708,
}


@functools.cache
def official(name: str) -> Golden:
    return Golden(name)


def config(name: str) -> dict:
    return config_of(REGISTERED[name], **SIZES, reattention_layers=REATTENTION_LAYERS[name])


def errors(name: str, **fields) -> dict[str, float]:
    """Errors of our model with these fields, in float64, by the names of the figures."""
    golden = official(name)
    variables = from_torch(golden.weights, config(name), "torch")
    model = from_config({**config(name), **fields}, num_classes=7)
    points = ["embedding", "encoderblock_0", "encoderblock_1", "encoder_norm"]
    trace = trace_ours(model, variables, golden.images, points, np.float64)
    tokens, first, second, last = trace.blocks
    found = {
        "mid_tokens": tokens,
        "mid_block0": first / model.stream_scale,
        "mid_block1": second / model.stream_scale,
        "mid_norm": last,
        "logits_f64": trace.logits,
    }
    return {key: relative_error(x, golden.figures[key]) for key, x in found.items()}


@pytest.mark.parametrize("name", [PLAIN, STEM])
def test_logits_are_the_official_codes(name):
    """Logits of images of 48×80 pixels, and what is computed on the way to them."""
    assert official(name).images.shape[1:3] == (48, 80)
    found = errors(name)
    assert max(found.values()) <= FLOAT64_BAR, found


@pytest.mark.parametrize("name", [PLAIN, STEM])
def test_official_names_both_ways(name):
    golden = official(name)
    ours = from_torch(golden.weights, config(name), "torch")
    again = to_torch(ours, config(name), "torch")
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    assert {key: list(x.shape) for key, x in again.items()} == {
        key: shape for key, shape, _ in facts["state_dict"]
    }
    for key, x in golden.weights.items():  # without BatchNorm's numbers of batches
        np.testing.assert_array_equal(again[key], x, err_msg=key)
    assert all(x.dtype == np.float32 for x in arrays(named(ours)).values())


def changed(monkeypatch, what: str, other, name: str = PLAIN) -> float:
    """The error of the logits with another part in the place of the one called `what`."""
    with monkeypatch.context() as patch:
        patch.setattr(deepvit, what, other)
        return errors(name)["logits_f64"]


def test_another_formula_is_seen(monkeypatch):
    for field, value in (("reattention_scaled", False), ("stream_scale", 1.0)):
        assert errors(STEM, **{field: value})["logits_f64"] > FLOAT64_BAR
    tanh = functools.partial(deepvit.vit_block, activation=nn.gelu)
    epsilon = functools.partial(deepvit.BatchNorm, epsilon=1e-3)
    assert changed(monkeypatch, "vit_block", tanh) > FLOAT64_BAR
    assert changed(monkeypatch, "BatchNorm", epsilon) > FLOAT64_BAR
    assert changed(monkeypatch, "LayerNorm", LayerNorm5) > FLOAT64_BAR


def test_mixing_the_other_way_is_seen():
    """Θ and its transpose have one shape: only numbers tell them apart."""
    golden = official(PLAIN)
    turned = {
        key: x.swapaxes(0, 1) if key.endswith("reatten_matrix.weight") else x
        for key, x in golden.weights.items()
    }
    variables = from_torch(turned, config(PLAIN), "torch")
    model = from_config(config(PLAIN), num_classes=7)
    logits = trace_ours(model, variables, golden.images, [], np.float64).logits
    assert relative_error(logits, golden.figures["logits_f64"]) > FLOAT64_BAR


def test_published_sizes():
    assert {name: recorded()[name].params for name in COUNTS} == COUNTS


def test_reattention_is_its_equation():
    """In training: the batch's own statistics, and weights that are shown before re-attention."""
    layer = deepvit.ReAttention(2, weights_scale=0.5)
    apply = functools.partial(layer.apply, train=True, mutable=["batch_stats", "intermediates"])
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (3, 5, 8), "float64")
        variables = layer.init(jax.random.key(1), x, train=False)
        variables = jax.tree.map(lambda value: np.asarray(value, np.float64), dict(variables))
        y, state = jax.device_get(jax.jit(apply)(variables, x))
    (weights,) = state["intermediates"]["attention_weights"]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-12)

    params = variables["params"]
    mixed = np.einsum("nhqk,hg->ngqk", weights, params["weights_mix"]["kernel"])
    mean, var = (f(mixed, axis=(0, 2, 3)) for f in (np.mean, np.var))
    maps = 0.5 * np.moveaxis((np.moveaxis(mixed, 1, -1) - mean) / np.sqrt(var + 1e-5), -1, 1)
    values = np.einsum("nkc,chd->nkhd", x, params["value"]["kernel"])
    heads = np.einsum("nhqk,nkhd->nqhd", maps, values)
    wanted = np.einsum("nqhd,hdc->nqc", heads, params["out"]["kernel"])
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-11)
    new = state["batch_stats"]["weights_norm"]
    np.testing.assert_allclose(new["mean"], 0.1 * mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(new["var"], 0.9 + 0.1 * var, rtol=1e-9)

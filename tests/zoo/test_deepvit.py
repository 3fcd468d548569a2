"""What only DeepViT has, beside its figures in test_official.py."""

import functools

import jax
import numpy as np
from zoo_figures import official

from vit_jax.models import deepvit
from vit_jax.parity.figures import FLOAT64_BAR, relative_error


def test_mixing_the_other_way_is_seen():
    """Θ and its transpose have one shape: only numbers tell them apart."""
    this = official("deepvit_reattn_tiny")
    turned = {
        key: x.swapaxes(0, 1) if key.endswith("reatten_matrix.weight") else x
        for key, x in this.golden.weights.items()
    }
    logits = this.compute(this.read(turned))["logits_f64"]
    assert relative_error(logits, this.golden.figures["logits_f64"]) > FLOAT64_BAR


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

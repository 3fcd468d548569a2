"""What only LV-ViT has, beside the battery's tests, and figures of the official code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from zoo_cases import Case, change_encoder, config_of
from zoo_golden import Golden

from vit_jax.checkpoint import from_torch
from vit_jax.layers.block import vit_block
from vit_jax.layers.head import HEADS, heads_of
from vit_jax.layers.norm import LayerNorm
from vit_jax.models import from_config, lvvit
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours

SMALL, LARGE = "lvvit_s", "lvvit_l"


@functools.cache
def case(name: str, size: tuple[int, int] = (48, 80), num_classes: int = 7) -> Case:
    return Case(name, size, num_classes=num_classes, num_layers=2)


def test_another_formula_is_seen(monkeypatch):
    this = case(SMALL)

    def altered(**fields) -> float:
        block = functools.partial(
            vit_block,
            **{
                "norm": lvvit.LayerNorm5,
                "residual": functools.partial(lvvit.Damped, 2.0),
                "qkv_bias": False,
                **fields,
            },
        )
        with monkeypatch.context() as patch:
            change_encoder(patch, lvvit, block=block)
            return relative_error(this.ours(this.model.clone()), this.theirs())

    assert altered() <= FLOAT64_BAR
    assert altered(activation=nn.gelu) > FLOAT64_BAR
    assert altered(norm=LayerNorm) > FLOAT64_BAR
    undamped = this.ours_with(residual_divisor=1.0)
    assert relative_error(undamped, this.theirs()) > FLOAT64_BAR
    heads = {
        f"{one}/{leaf}": this.flat[f"{other}/{leaf}"]
        for leaf in ("kernel", "bias")
        for one, other in (("head", "head_tokens"), ("head_tokens", "head"))
    }
    assert relative_error(this.ours_from(**heads), this.theirs()) > FLOAT64_BAR


@pytest.fixture(scope="module")
def tiny():
    """The official tiny model: ours, its variables in float64, and the figures."""
    golden = Golden("lvvit_tiny_lam2")
    config = config_of(
        SMALL,
        hidden_size=24,
        num_layers=3,
        num_heads=3,
        mlp_dim=72,
        drop_path_rate=0.0,
    )
    variables = from_torch(golden.weights, config, "tlt")
    return from_config(config, num_classes=7), variables, golden


def test_logits_are_the_official_codes(tiny):
    model, variables, golden = tiny
    trace = trace_ours(model, variables, golden.images, ["Transformer/encoder_norm"], np.float64)
    assert relative_error(trace.logits, golden.figures["logits_f64"]) <= FLOAT64_BAR
    assert relative_error(trace.blocks[0], golden.figures["features_f64"]) <= FLOAT64_BAR


def train(model, variables, images, mix=None):
    """What the heads give and new statistics of a training pass in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats", HEADS])
        output, state = jax.device_get(jax.jit(apply)(wide, images, mix=mix))
    logits, of_tokens = heads_of(output, state)
    np.testing.assert_allclose(output, logits + of_tokens.max(1) / 2, rtol=1e-12)
    return (logits, of_tokens), state["batch_stats"]


def test_training_with_mixed_tokens_is_the_official_codes(tiny):
    model, variables, golden = tiny
    mix = np.zeros((3, 5), bool)
    mix[1:3, 2:4] = True
    (logits, of_tokens), _ = train(model, variables, golden.images, mix)
    assert relative_error(logits, golden.figures["train_bnbatch_cls_f64"]) <= FLOAT64_BAR
    assert relative_error(of_tokens, golden.figures["train_bnbatch_aux_f64"]) <= FLOAT64_BAR
    (unmixed, _), _ = train(model, variables, golden.images)
    assert relative_error(unmixed, golden.figures["train_bnbatch_cls_f64"]) > FLOAT64_BAR


def test_statistics_after_training(tiny):
    """Nine tenths of the old, one tenth of the batch's own mean and (biased) variance."""
    model, variables, golden = tiny
    _, statistics = train(model, variables, golden.images)
    kernel = np.asarray(variables["params"]["stem"]["conv_0"]["conv"]["kernel"], np.float64)
    with jax.enable_x64(True):
        x = jax.lax.conv_general_dilated(
            jnp.asarray(golden.images),
            jnp.asarray(kernel),
            (2, 2),
            ((3, 3), (3, 3)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = np.asarray(x)
    old = variables["batch_stats"]["stem"]["conv_0"]["norm"]
    new = statistics["stem"]["conv_0"]["norm"]
    for name, batch in (("mean", x.mean((0, 1, 2))), ("var", x.var((0, 1, 2)))):
        wanted = 0.9 * np.asarray(old[name], np.float64) + 0.1 * batch
        np.testing.assert_allclose(new[name], wanted, rtol=1e-9, atol=1e-12)


def test_damping_keeps_the_expectation():
    x = jnp.ones((20_000, 1))
    layer = lvvit.Damped(2.0)
    rngs = {"dropout": jax.random.key(0)}
    y = np.asarray(layer.apply({}, x, 0.25, train=True, rngs=rngs))
    assert set(np.unique(y).round(5)) == {0.0, np.float32(0.5 / 0.75).round(5)}
    np.testing.assert_allclose(y.mean(), 0.5, atol=0.01)
    np.testing.assert_array_equal(layer.apply({}, x, 0.25, train=False), x / 2)

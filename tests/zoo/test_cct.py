"""What only CCT has, beside the battery's tests, and figures of the official code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from zoo_cases import Case, change_encoder, config_of, resizing
from zoo_golden import Golden

from vit_jax.checkpoint import from_torch
from vit_jax.checkpoint.names import shapes_of
from vit_jax.families.resize import resize_posembed
from vit_jax.layers.block import vit_block
from vit_jax.layers.norm import LayerNorm, LayerNorm5
from vit_jax.layers.pool import sequence_pool
from vit_jax.models import cct, from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours

SMALL, LARGE = "cct_6_3x2_32", "cct_14_7x2_224"
POSITIONS = "posembed_input/pos_embedding"


@functools.cache
def case(name: str, size: tuple[int, int], num_classes: int = 7) -> Case:
    return Case(name, size, num_classes=num_classes, num_layers=2)


@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("cct_tiny", 40, {"num_convolutions": 2, "kernel_size": 7, "stride": 2}),
        # Its sines are stored with the weights, and are read like learned positions.
        ("cct_tiny_sine", 24, {"num_convolutions": 1, "kernel_size": 3, "stride": 1}),
    ],
)
def test_logits_are_the_official_codes(name, size, fields):
    golden = Golden(name)
    sizes = {"hidden_size": 24, "num_layers": 3, "num_heads": 3, "mlp_dim": 48}
    config = config_of(SMALL, **fields, **sizes)
    assert golden.images.shape[1:3] == (size, size)
    variables = from_torch(golden.weights, config, "vit_pytorch")
    model = from_config(config, num_classes=7)
    points = ["tokenizer", "Transformer/encoderblock_0", "Transformer/encoder_norm"]
    trace = trace_ours(model, variables, golden.images, points, np.float64)
    wanted = [golden.figures[name] for name in ("mid_tokens", "mid_block0", "mid_norm")]
    for ours, theirs in zip(trace.outputs, [*wanted, golden.figures["logits_f64"]], strict=True):
        assert relative_error(ours, theirs) <= FLOAT64_BAR


def test_another_formula_is_seen(monkeypatch):
    this = case(SMALL, (32, 32))

    def altered(**factories) -> float:
        with monkeypatch.context() as patch:
            change_encoder(patch, cct, **factories)
            return relative_error(this.ours(this.model.clone()), this.theirs())

    assert altered(norm=LayerNorm5) <= FLOAT64_BAR
    assert altered(norm=LayerNorm) > FLOAT64_BAR
    usual = functools.partial(vit_block, norm=LayerNorm5, qkv_bias=False)
    assert altered(block=usual) > FLOAT64_BAR  # its second norm is not in the stream
    tanh = functools.partial(cct.torch_mlp, activation=nn.gelu)
    monkeypatch.setattr(cct, "torch_mlp", tanh)
    assert relative_error(this.ours(this.model.clone()), this.theirs()) > FLOAT64_BAR


def same_padding(features: int, kernel: int, *, stride: int, **fields) -> nn.Conv:
    return nn.Conv(features, (kernel, kernel), (stride, stride), padding="SAME", **fields)


def test_flaxs_padding_is_seen(monkeypatch):
    """It puts fewer zeros before than after, where the stride is 2."""
    this = case(LARGE, (48, 80))
    monkeypatch.setattr(cct, "conv", same_padding)
    assert relative_error(this.ours(this.model.clone()), this.theirs()) > FLOAT64_BAR


def test_positions_follow_the_map():
    """What is left at the border makes a token: 50×90 pixels are 4×6 of them."""
    old = case(LARGE, (64, 64))
    edits = resizing(old.config, shapes_of(old.flat), old.size, (50, 90), "timm")
    assert set(edits) == {POSITIONS}
    table = edits[POSITIONS](old.flat[POSITIONS])
    wanted = resize_posembed(old.flat[POSITIONS], (4, 4), (4, 6), 0, "timm")
    np.testing.assert_array_equal(table, wanted)
    new = case(LARGE, (50, 90))
    assert np.isfinite(new.ours_from(**{**old.flat, POSITIONS: table})).all()


class Pool(nn.Module):
    @nn.compact
    def __call__(self, x):
        return sequence_pool(x)


def test_pooling_is_a_weighted_mean():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    kernel = jnp.asarray([[1.0], [2.0], [-1.0]])
    params = {"attention_pool": {"kernel": kernel, "bias": jnp.asarray([3.0])}}
    scores = np.asarray(x) @ np.asarray(kernel)
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    wanted = (weights * np.asarray(x)).sum(axis=1)
    np.testing.assert_allclose(Pool().apply({"params": params}, x), wanted, rtol=1e-5, atol=1e-6)

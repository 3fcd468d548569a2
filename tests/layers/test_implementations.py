"""Forced implementations fall back to plain attention, to the bit, for what they cannot do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels import kernels

from vit_jax.families.registry import resolve
from vit_jax.layers import packed_attention
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.implementation import attending
from vit_jax.layers.talking_heads import TalkingHeadsAttention
from vit_jax.layers.windows import WindowAttention
from vit_jax.models import from_config

TOKENS = (2, 17, 32)
PLAIN = functools.partial(MultiHeadDotProductAttention, num_heads=2)
# What is called, on what, and how.
FALL_BACK = {
    "dropout": (functools.partial(PLAIN, dropout_rate=0.5), TOKENS, {"train": True}),
    "looking": (PLAIN, TOKENS, {"mutable": ["intermediates"]}),
    "bias": (PLAIN, TOKENS, {"bias": jnp.linspace(-1, 1, 17).reshape(1, 1, 1, 17)}),
    "queries": (PLAIN, TOKENS, {"queries": jnp.ones((2, 1, 32))}),
    "values": (PLAIN, TOKENS, {"values": jnp.ones(TOKENS)}),
    "talking heads": (functools.partial(TalkingHeadsAttention, num_heads=2), TOKENS, {}),
    "windows": (functools.partial(WindowAttention, num_heads=2), (1, 14, 7, 32), {}),
}


def called(layer, shape, call, attend, mesh=None):
    """A layer as a function of its input, and that input."""
    x = jax.random.normal(jax.random.key(0), shape)
    variables = jax.jit(functools.partial(layer.init, train=False))(jax.random.key(1), x)
    params = {"params": jax.tree.map(lambda w: w + 0.1, variables["params"])}

    def apply(x):
        rngs = {"dropout": jax.random.key(2)}
        return layer.apply(params, x, rngs=rngs, **{"train": False, **call})

    return jax.jit(attending(attend, mesh)(apply)), x


def assert_falls_back(layer, shape, call, mesh=None):
    packed, x = called(layer, shape, call, "packed", mesh)
    xla, _ = called(layer, shape, call, "xla", mesh)
    assert kernels(packed, x) == []
    jax.tree.map(np.testing.assert_array_equal, packed(x), xla(x))


@pytest.mark.parametrize("what", FALL_BACK)
def test_what_the_kernel_cannot_do(what):
    make, shape, call = FALL_BACK[what]
    assert_falls_back(make(), shape, call)


def test_lengths_that_do_not_fit_the_chip(monkeypatch):
    monkeypatch.setattr(packed_attention, "_MOST_VMEM", 2**20)
    assert_falls_back(PLAIN(), TOKENS, {})


def test_batches_that_the_mesh_does_not_divide():
    types = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((4, 1, 1), ("data", "fsdp", "model"), axis_types=types)
    assert_falls_back(PLAIN(), TOKENS, {}, mesh)


@pytest.mark.parametrize("fields", [{}, {"dropout_rate": 0.5}, {"qkv_bias": False}], ids=str)
def test_negative_control_what_the_kernel_can_do(fields):
    packed, x = called(PLAIN(**fields), TOKENS, {}, "packed")
    assert kernels(packed, x) == ["packed_attention_forward"]
    xla, _ = called(PLAIN(**fields), TOKENS, {}, "xla")
    assert 0 < np.abs(packed(x) - xla(x)).max() < 1e-5


@pytest.mark.parametrize(("name", "taken"), [("cait_xxs24_224", 0), ("deit_tiny_patch16_224", 2)])
def test_models(name, taken):
    config = resolve(name).config.to_dict()
    config["transformer"]["num_layers"] = 2
    model = from_config(config, num_classes=5)
    images = jnp.ones((2, 32, 48, 3))
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images
    )
    forward = attending("packed")(functools.partial(model.apply, train=False))
    assert len(kernels(forward, variables, images)) == taken

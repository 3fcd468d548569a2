"""Attention a block of queries at a time: plain attention's numbers, and memory that is linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.layers.attention import MultiHeadDotProductAttention, attend, blocks
from vit_jax.layers.attention.choice import attending

RNG = np.random.default_rng(0)

# Axes before the tokens, queries, keys, heads, width of a head, shape of the bias.
CASES = {
    "even": ((2,), 256, 256, 2, 32, None),
    "odd length": ((2,), 197, 197, 3, 40, None),
    "other keys": ((2,), 130, 49, 2, 128, None),
    "a bias": ((2,), 197, 197, 2, 64, (1, 2, 197, 197)),
    "a mask of keys": ((2,), 197, 197, 2, 64, (2, 1, 1, 197)),
    "windows": ((2, 3), 150, 150, 2, 32, (1, 3, 2, 150, 150)),
}


def arrays(outer, queries, keys, heads, width, bias):
    q = RNG.normal(size=(*outer, queries, heads, width))
    k, v = RNG.normal(size=(2, *outer, keys, heads, width))
    b = None if bias is None else RNG.normal(size=bias)
    if bias is not None and bias[-2] == 1:
        b = np.where(RNG.random(bias) < 0.3, -1e30, 0.0)
    return q, k, v, b


def results(name, inputs, scale, platform):
    """The output, and the gradients of everything that goes in."""
    *_, bias = inputs

    def loss(q, k, v, b):
        y = attend(q, k, v, bias=b, scale=scale)
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (y * weights).sum(), y

    wanted = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    with attending(name, platform=platform):
        gradients, y = jax.jit(jax.grad(loss, wanted, has_aux=True))(*inputs)
    return [y, *gradients]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_those_of_plain_attention(monkeypatch, case, platform):
    monkeypatch.setattr(blocks, "_SCORES", 1)  # blocks of 128
    monkeypatch.setattr(blocks, "_FEWEST", 64)
    with jax.enable_x64(True):
        inputs = arrays(*CASES[case])
        ours = results("blocks", inputs, 0.3, platform)
        plain = results("xla", inputs, 0.3, platform)
        for one, other in zip(ours, plain, strict=True):
            assert one.dtype == jnp.float64
            error = np.abs(one - other).max() / np.abs(other).max()
            assert error < 1e-13
        wrong = results("xla", inputs, 0.31, platform)  # another scale, which must show
        assert np.abs(ours[0] - wrong[0]).max() / np.abs(wrong[0]).max() > 1e-4


def test_auto_takes_it_for_long_rows_alone():
    def program(tokens, name):
        x = jax.ShapeDtypeStruct((1, tokens, 2, 8), jnp.float32)
        with attending(name):
            return str(jax.make_jaxpr(attend)(x, x, x))

    for tokens, name, cut in ((1024, "auto", False), (1025, "auto", True), (1025, "xla", False)):
        assert ("scan" in program(tokens, name)) == cut


@pytest.mark.parametrize("backward", [False, True])
def test_memory_grows_with_the_length_and_not_with_its_square(backward):
    def temporaries(tokens, name):
        def f(q, k, v):
            return (attend(q, k, v) ** 2).sum() if backward else attend(q, k, v)

        x = jax.ShapeDtypeStruct((1, tokens, 2, 16), jnp.float32)
        with attending(name):
            compiled = jax.jit(jax.grad(f, (0, 1, 2)) if backward else f).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    lengths = (16384, 32768)
    short, long = (temporaries(n, "auto") for n in lengths)
    assert 1.5 < long / short < 2.5
    if backward:  # what a square looks like; forward, XLA's CPU programs keep no scores either
        plain = [temporaries(n, "xla") for n in (4096, 8192)]
        assert 3 < plain[1] / plain[0] < 5


def test_dropout_of_the_weights_is_refused():
    layer = MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.5)
    x = jnp.ones((1, 5, 8))
    variables = layer.init(jax.random.key(0), x, train=False)
    with attending("blocks"), pytest.raises(UserError, match="dropout of its weights"):
        layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})


def test_weights_can_be_looked_at():
    layer = MultiHeadDotProductAttention(num_heads=2)
    x = jax.random.normal(jax.random.key(0), (1, 150, 8))
    variables = layer.init(jax.random.key(1), x, train=False)
    with attending("blocks"):
        plain = layer.apply(variables, x, train=False)
        y, seen = layer.apply(variables, x, train=False, mutable=["intermediates"])
    (weights,) = seen["intermediates"]["attention_weights"]
    assert weights.shape == (1, 2, 150, 150)
    np.testing.assert_array_equal(y, plain)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)

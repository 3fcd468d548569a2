"""The packed kernel against plain attention: forward, gradients, and inside the layer."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels import kernels

from vit_jax.errors import UserError
from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.attention.choice import attending
from vit_jax.layers.attention.packed import Heads, packed_attention, problem

# (tokens, heads, width): pairs in a register, heads that cross registers, odd counts.
CASES = [(197, 2, 64), (50, 3, 64), (65, 5, 80), (17, 5, 32), (10, 1, 16), (33, 2, 128)]


def plain(qkv, bias, heads):
    batch, length, _ = qkv.shape
    used = heads.count * heads.width
    x = (qkv + bias.reshape(1, 1, -1)).reshape(batch, length, 3, heads.lanes)[..., :used]
    q, k, v = jnp.moveaxis(x.reshape(batch, length, 3, heads.count, heads.width), 2, 0)
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) * heads.score_scale
    y = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, -1), v).reshape(batch, length, used)
    return jnp.pad(y, ((0, 0), (0, 0), (0, heads.lanes - used)))


def inputs(length, heads, batch=2):
    rng = np.random.default_rng(0)
    real = np.tile(np.arange(heads.lanes) < heads.count * heads.width, 3)
    qkv = rng.standard_normal((batch, length, 3 * heads.lanes)) * real
    bias = rng.standard_normal(3 * heads.lanes) * real
    gradient = rng.standard_normal((batch, length, heads.lanes))
    return real, *(jnp.asarray(x, jnp.float32) for x in (qkv, bias, gradient))


def results(function, qkv, bias, gradient):
    y, pull = jax.vjp(function, qkv, bias)
    return y, *pull(gradient.astype(y.dtype))


def error(ours, theirs):
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return np.abs(ours - theirs).max() / theirs.std()


def compared(length, count, width, dtype=jnp.float32, scale=None):
    heads = Heads(count, width, scale)
    real, qkv, bias, gradient = inputs(length, heads)
    packed = jax.jit(functools.partial(packed_attention, heads=heads, interpret=True))
    ours = results(lambda x, b: packed(x, b), qkv.astype(dtype), bias, gradient)
    theirs = results(lambda x, b: plain(x, b, heads), qkv, bias, gradient)
    # Nobody asks for the gradient of lanes that hold no head.
    return [
        error(a[..., used], b[..., used])
        for a, b, used in zip(ours, theirs, (slice(None), real, real), strict=True)
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_plain_attention_in_float32(case):
    assert max(compared(*case)) < 1e-4


def test_in_bfloat16_it_is_as_close_as_rounding_allows():
    forward, d_qkv, d_bias = compared(50, 4, 64, jnp.bfloat16)
    assert forward < 0.03
    assert max(d_qkv, d_bias) < 0.12


def test_the_scale_matters():
    heads = Heads(2, 64)
    _, qkv, bias, _ = inputs(17, heads)
    other = packed_attention(qkv, bias, Heads(2, 64, 0.2), True)
    assert error(other, plain(qkv, bias, heads)) > 1e-2
    assert max(compared(17, 2, 64, scale=0.2)) < 1e-4


def test_lengths_that_do_not_fit_the_chip_are_left_to_others():
    assert problem(577, Heads(16, 64)) is None
    assert "4096 tokens" in str(problem(4096, Heads(16, 64)))
    assert "129 heads" in str(problem(17, Heads(129, 8)))


@pytest.mark.parametrize("meshed", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_the_layer_has_one_tree_and_one_result(meshed, qkv_bias):
    mesh = None
    if meshed:
        mesh = jax.make_mesh(
            (2, 2, 1), ("data", "fsdp", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 3
        )
    layer = MultiHeadDotProductAttention(num_heads=3, qkv_bias=qkv_bias)
    x = jax.random.normal(jax.random.key(0), (4, 17, 48))
    variables = layer.init(jax.random.key(1), x, train=False)
    variables = jax.tree.map(lambda v: v + 0.1, variables)

    def loss(variables, x, name):
        with attending(name, mesh):
            return (layer.apply(variables, x, train=False) ** 2).sum()

    grads = {
        name: jax.jit(jax.grad(functools.partial(loss, name=name), argnums=(0, 1)))(variables, x)
        for name in ("xla", "packed", "auto")
    }
    assert jax.tree.structure(grads["packed"]) == jax.tree.structure(grads["auto"])
    # All leaves together: a bias of the keys changes nothing, its gradient is rounding alone.
    flat = {
        name: jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradient)])
        for name, gradient in grads.items()
    }
    assert error(flat["packed"], flat["xla"]) < 1e-4
    assert error(flat["auto"], flat["xla"]) == 0


def test_looking_at_the_weights_changes_nothing():
    layer = MultiHeadDotProductAttention(num_heads=2)
    x = jax.random.normal(jax.random.key(0), (1, 5, 16))
    params = {"params": layer.init(jax.random.key(1), x, train=False)["params"]}

    @attending("packed")
    def looking(x):
        return layer.apply(params, x, train=False, mutable=["intermediates"])

    @attending("packed")
    def plainly(x):
        return layer.apply(params, x, train=False)

    assert kernels(looking, x) == ["packed_attention_forward"]
    (y, sown), expected = jax.jit(looking)(x), jax.jit(plainly)(x)
    np.testing.assert_array_equal(y, expected)
    (weights,) = flax.traverse_util.flatten_dict(sown["intermediates"], sep="/").values()
    assert weights[0].shape == (1, 2, 5, 5)
    np.testing.assert_allclose(weights[0].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_what_cannot_run_here_is_refused(name):
    with pytest.raises(UserError, match=name), attending(name):
        pass

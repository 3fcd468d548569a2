"""The kernel for long rows against plain attention: forward, gradients, and where it is taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.layers.attention import attend, plain_attention
from vit_jax.layers.attention.choice import attending
from vit_jax.layers.attention.flash import flash_attention, problem

# (queries, keys, heads, width): odd lengths, an odd number of heads side by side, padded widths.
CASES = [(130, 131, 3, 64), (257, 257, 2, 32), (40, 40, 2, 80), (129, 128, 1, 128)]


def inputs(queries, keys, heads, width, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    lengths = (queries, keys, keys, queries)
    return [jnp.asarray(rng.standard_normal((2, n, heads, width)), dtype) for n in lengths]


@functools.partial(jax.jit, static_argnums=0)
def results(function, q, k, v, gradient):
    y, pull = jax.vjp(function, q, k, v)
    return y, *pull(gradient)


def errors(function, arguments, reference):
    found, wanted = results(function, *arguments), results(plain_attention, *reference)
    pairs = [[np.asarray(x, np.float64) for x in pair] for pair in zip(found, wanted, strict=True)]
    return [np.abs(ours - theirs).max() / theirs.std() for ours, theirs in pairs]


kernel = functools.partial(flash_attention, interpret=True)


@pytest.mark.parametrize("case", CASES)
def test_equals_plain_attention(case):
    with jax.enable_x64(True):
        arguments = inputs(*case, jnp.float64)
        assert max(errors(kernel, arguments, arguments)) < 1e-12


@pytest.mark.promotes
def test_16_bits_round_no_more_than_plain_attention_does():
    arguments = inputs(130, 131, 2, 64, jnp.bfloat16)
    reference = [x.astype(jnp.float32) for x in arguments]
    ours, plain = (errors(f, arguments, reference) for f in (kernel, plain_attention))
    assert 1e-4 < max(ours) < 1.5 * max(plain)


def test_another_scale_is_seen():
    arguments = inputs(*CASES[2])
    scaled = functools.partial(kernel, scale=0.11)
    assert max(errors(scaled, arguments, arguments)) > 1e-3


@pytest.mark.parametrize(("keys", "taken"), [(512, True), (511, False)])
def test_auto_takes_it_for_long_rows_on_tpus(keys, taken):
    q, k, v, _ = inputs(8, keys, 2, 64, jnp.bfloat16)
    with attending(platform="tpu"):
        program = jax.make_jaxpr(lambda *x: attend(*x))(q, k, v)
    assert ("flash_attention" in str(program)) == taken


def test_what_it_cannot_compute_is_said():
    q, k, v, _ = inputs(8, 16, 1, 136)
    with pytest.raises(UserError, match=r"attend='flash'.*136 wide"), attending("flash"):
        jax.eval_shape(attend, q, k, v)
    x = jax.ShapeDtypeStruct((1, 65536, 1, 64), jnp.bfloat16)
    assert "65536 tokens" in problem(x, x, x)
    x = jax.ShapeDtypeStruct((1, 7000, 1, 64), jnp.bfloat16)
    assert problem(x, x, x) is None

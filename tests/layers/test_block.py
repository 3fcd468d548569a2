"""What blocks are told beside their tokens, and their gated and partial parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.attention import MultiHeadDotProductAttention
from vit_jax.layers.attention.choice import attending
from vit_jax.layers.block import vit_block
from vit_jax.layers.encoder import Encoder
from vit_jax.layers.mlp import GatedMlp
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.rotary import axial_angles, in_pairs, rotate_pairs
from vit_jax.tree import arrays


@pytest.mark.promotes
def test_every_block_gets_the_context_however_it_is_run():
    """In float64: the gradients are large, and what float32 rounds off them is, too."""
    with jax.enable_x64(True):
        attention = functools.partial(MultiHeadDotProductAttention, rotate=rotate_pairs)
        encoder = functools.partial(
            Encoder, 3, 32, 2, block=functools.partial(vit_block, attention=attention)
        )
        x = jax.random.normal(jax.random.key(0), (2, 7, 16))
        context = {
            "rotary": in_pairs(axial_angles(np.arange(2.0), np.arange(3.0), np.ones(2))),
            "bias": jnp.where(jnp.arange(7) < 5, 0.0, -1e30).reshape(1, 1, 1, 7),
        }
        params = encoder().init(jax.random.key(1), x, train=False)["params"]
        params = jax.tree.map(lambda p: 20 * p, params)  # so that attention matters
        blocks = [params.pop(f"encoderblock_{i}") for i in range(3)]
        stacked = {**params, "encoderblock": jax.tree.map(lambda *b: jnp.stack(b), *blocks)}
        params |= {f"encoderblock_{i}": block for i, block in enumerate(blocks)}

        def run(params, context, **fields):
            model = encoder(**fields)
            y = jax.jit(lambda x: model.apply({"params": params}, x, train=False, **context))(x)
            gradient = jax.jit(
                jax.grad(
                    lambda x: (
                        model.apply({"params": params}, x, train=False, **context) ** 3
                    ).sum()
                )
            )(x)
            return np.stack([y, gradient])

        plain = run(params, context)
        assert abs(plain[0, :, 5:]).max() > 0
        for fields, tree in (({"remat": True}, params), ({"scan": True, "remat": True}, stacked)):
            np.testing.assert_allclose(run(tree, context, **fields), plain, rtol=1e-9, atol=1e-9)
        for name in context:
            left = {key: value for key, value in context.items() if key != name}
            assert abs(run(params, left) - plain).max() > 1e-2


def test_gated_mlp():
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    model = GatedMlp(12, norm=LayerNorm)
    variables = model.init(jax.random.key(0), x, train=False)
    shapes = {name: p.shape for name, p in arrays(variables["params"]).items()}
    assert shapes == {
        "gate/kernel": (8, 12),
        "gate/bias": (12,),
        "Dense_0/kernel": (8, 12),
        "Dense_0/bias": (12,),
        "LayerNorm_0/scale": (12,),
        "LayerNorm_0/bias": (12,),
        "Dense_1/kernel": (12, 8),
        "Dense_1/bias": (8,),
    }
    p = jax.tree.map(np.asarray, variables["params"])
    gate, up = (x @ p[name]["kernel"] for name in ("gate", "Dense_0"))
    y = gate / (1 + np.exp(-gate)) * up
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    expected = y @ p["Dense_1"]["kernel"]
    np.testing.assert_allclose(model.apply(variables, x, train=False), expected, atol=1e-5)


@pytest.mark.parametrize("biased", [("query", "value"), ("value",)])
def test_projections_with_a_bias_by_name(biased):
    layer = MultiHeadDotProductAttention(num_heads=3, qkv_bias=biased)
    x = jax.random.normal(jax.random.key(0), (2, 17, 48))
    variables = layer.init(jax.random.key(1), x, train=False)
    assert {n for n in ("query", "key", "value") if "bias" in variables["params"][n]} == set(biased)
    variables = jax.tree.map(lambda v: v + 0.1, variables)

    def run(name):
        with attending(name):
            return jax.jit(lambda x: layer.apply(variables, x, train=False))(x)

    np.testing.assert_allclose(run("packed"), run("xla"), atol=1e-5)


def test_heads_are_normalised_before_the_output():
    layer = MultiHeadDotProductAttention(num_heads=2, inner_norm=LayerNorm)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = layer.init(jax.random.key(1), x, train=False)
    larger = jax.tree.map(jnp.copy, variables)
    larger["params"]["value"]["kernel"] *= 100
    y, z = (layer.apply(v, x, train=False) for v in (variables, larger))
    # All that differs is what the eps weighs beside a variance of smaller heads.
    np.testing.assert_allclose(y, z, atol=1e-4)
    assert variables["params"]["LayerNorm_0"]["scale"].shape == (8,)

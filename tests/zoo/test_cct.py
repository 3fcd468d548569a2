"""What only Compact Transformers have, beside the battery's tests and the official figures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from zoo_cases import Case, change_encoder, config_of, resizing

from vit_jax.checkpoint import names
from vit_jax.checkpoint.names import shapes_of
from vit_jax.errors import UserError
from vit_jax.families.registry import families
from vit_jax.families.resize import resize_posembed
from vit_jax.layers.block import vit_block
from vit_jax.layers.norm import LayerNorm, LayerNorm5
from vit_jax.layers.pool import sequence_pool
from vit_jax.layers.sincos import sinusoid
from vit_jax.models import cct, get_model
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.subject import random_params

SMALL, LARGE = "cct_6_3x2_32", "cct_14_7x2_224"
POSITIONS = "posembed_input/pos_embedding"


@functools.cache
def case(name: str, size: tuple[int, int], num_classes: int = 7) -> Case:
    return Case(name, size, num_classes=num_classes, num_layers=2)


def fitted(kind: str, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What changes of a model with such positions for images of another size."""
    config = config_of(SMALL, position_embedding=kind, hidden_size=128)
    shapes = names.expected_shapes(config, num_classes=7, image_size=(32, 32))
    flat = random_params(shapes, seed=0)
    return {
        name: edit(flat[name])
        for name, edit in resizing(config, shapes, (32, 32), size, "timm").items()
    }


def test_sines_are_computed_for_each_size():
    """Learned positions are stretched; of a model without any, nothing depends on the size."""
    (table,) = fitted("sine", (16, 40)).values()
    np.testing.assert_array_equal(table, sinusoid(4 * 10, 128))
    (learned,) = fitted("learned", (16, 40)).values()
    assert learned.shape == table.shape
    assert not np.array_equal(learned, table)
    assert fitted("none", (16, 40)) == {}
    frozen = families()["cct"].frozen
    assert frozen({"position_embedding": "sine"}) == (POSITIONS,)
    assert frozen({}) == ()


def test_an_unknown_kind_of_positions_is_an_error():
    with pytest.raises(UserError, match=r"position_embedding 'sin'\. Did you mean 'sine'"):
        get_model(SMALL, position_embedding="sin").init(
            jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False
        )


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

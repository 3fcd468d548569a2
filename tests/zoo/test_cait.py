"""What only CaiT has, beside the battery's tests; against timm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from zoo_cases import Case, change_encoder

from vit_jax.layers.norm import LayerNorm5
from vit_jax.layers.talking_heads import TalkingHeadsAttention
from vit_jax.models import cait
from vit_jax.parity.figures import FLOAT64_BAR, relative_error

SMALL, LATE = "cait_xxs24_224", "cait_s36_384"


@functools.cache
def case(name: str, size: tuple[int, int] = (48, 80), num_classes: int = 7) -> Case:
    return Case(name, size, num_classes=num_classes, num_layers=2)


def test_weights_that_the_formula_needs_are_seen():
    this = case(SMALL)
    block = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0"
    swapped = {
        f"{block}/scores_mix/kernel": this.flat[f"{block}/weights_mix/kernel"],
        f"{block}/weights_mix/kernel": this.flat[f"{block}/scores_mix/kernel"],
    }
    assert relative_error(this.ours_from(**swapped), this.theirs()) > FLOAT64_BAR
    transposed = {f"{block}/scores_mix/kernel": this.flat[f"{block}/scores_mix/kernel"].T}
    assert relative_error(this.ours_from(**transposed), this.theirs()) > FLOAT64_BAR


@pytest.mark.parametrize("wrong", ["gelu", "eps", "query", "cls"])
def test_another_formula_is_seen(wrong, monkeypatch):
    """The class token's part has no fields to change: its functions are."""
    this = case(SMALL)
    if wrong == "gelu":
        plain = functools.partial(cait.torch_mlp, activation=nn.gelu)
        monkeypatch.setattr(cait, "torch_mlp", plain)
    elif wrong == "eps":
        change_encoder(monkeypatch, cait, norm=LayerNorm5)
    elif wrong == "query":
        monkeypatch.setattr(cait, "ClassAttentionBlock", NormedTwice)
    else:
        monkeypatch.setattr(cait, "ClassAttentionBlock", PatchesOnly)
    ours = this.ours(this.model.clone())
    assert relative_error(ours, this.theirs()) > FLOAT64_BAR


class NormedTwice(cait.ClassAttentionBlock):
    """The residual is the normalised token, as if the norm were in the stream."""

    @nn.compact
    def __call__(self, cls, x, *, train):
        y = self.norm(name="LayerNorm_0")(jnp.concatenate([cls, x], axis=1))
        cls = y[:, :1]
        y = self.attention(name="MultiHeadDotProductAttention_0")(y, queries=cls, train=train)
        cls = cls + self.residual(name="residual_0")(y, 0.0, train=train)
        y = self.mlp(name="MlpBlock_0")(self.norm(name="LayerNorm_1")(cls), train=train)
        return cls + self.residual(name="residual_1")(y, 0.0, train=train)


class PatchesOnly(cait.ClassAttentionBlock):
    """The class token does not see itself."""

    @nn.compact
    def __call__(self, cls, x, *, train):
        y = self.norm(name="LayerNorm_0")(jnp.concatenate([cls, x], axis=1))
        attention = self.attention(name="MultiHeadDotProductAttention_0")
        y = attention(y[:, 1:], queries=y[:, :1], train=train)
        cls = cls + self.residual(name="residual_0")(y, 0.0, train=train)
        y = self.mlp(name="MlpBlock_0")(self.norm(name="LayerNorm_1")(cls), train=train)
        return cls + self.residual(name="residual_1")(y, 0.0, train=train)


def test_weights_are_looked_at_before_heads_talk():
    """A mixture that makes nothing of the weights changes what is given, and not what is sown."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = TalkingHeadsAttention(2)
    variables = layer.init(jax.random.key(1), x, train=False)
    mix = variables["params"]["weights_mix"]
    mix["kernel"], mix["bias"] = jnp.zeros((2, 2)), jnp.zeros(2)
    y, state = layer.apply(variables, x, train=False, mutable=["intermediates"])
    (weights,) = state["intermediates"]["attention_weights"]
    np.testing.assert_allclose(weights.sum(axis=-1), np.ones((2, 2, 5)), rtol=1e-6)
    assert not np.asarray(y).any()


def test_stochastic_depth_is_the_same_in_every_block_of_patches():
    """A rate of almost 1 leaves nothing of the first block either, and all of the class token's."""
    this = Case(SMALL, (32, 32), num_layers=2, drop_path_rate=1 - 1e-7)
    rngs = {"dropout": jax.random.key(0)}
    apply = jax.jit(functools.partial(this.model.apply, train=True))
    dropped = apply(this.variables, this.images.astype(np.float32), rngs=rngs)
    silent = {
        name: np.zeros_like(x)
        for name, x in this.flat.items()
        if "encoderblock" in name and name.endswith("gamma")
    }
    assert relative_error(np.asarray(dropped), this.ours_from(**silent)) <= 1e-5
    assert relative_error(np.asarray(dropped), this.ours64) > 1e-3

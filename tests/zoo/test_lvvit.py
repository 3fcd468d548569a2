"""What only LV-ViT has, beside the battery's tests and its figures in test_official.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from zoo_cases import Case, change_encoder
from zoo_figures import official

from vit_jax.layers.block import vit_block
from vit_jax.layers.norm import LayerNorm
from vit_jax.models import lvvit
from vit_jax.parity.figures import FLOAT64_BAR, relative_error

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


def test_statistics_after_training():
    """Nine tenths of the old, one tenth of the batch's own mean and (biased) variance."""
    this = official("lvvit_tiny_lam2")
    variables, golden = this.variables, this.golden
    kernel = np.asarray(variables["params"]["stem"]["conv_0"]["conv"]["kernel"], np.float64)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        apply = functools.partial(this.model.apply, train=True, mutable=["batch_stats"])
        _, state = jax.device_get(jax.jit(apply)(wide, golden.images))
        statistics = state["batch_stats"]
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

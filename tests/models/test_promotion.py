"""What every model returns, in evaluation and training; no type is promoted on the way."""

import functools

import jax
import jax.numpy as jnp
import pytest
from recipes import golden_json

from vit_jax.checkpoint import names
from vit_jax.families.registry import families, resolve, shrunk, taking
from vit_jax.layers.attention.choice import attending
from vit_jax.models import from_config

SMALL = golden_json("small.json")
GOOGLE = {name: SMALL[name]["config"] for name in ("tiny-hot", "tiny-r-1-1", "tiny-mixer")}


def config_of(name):
    if name in GOOGLE:
        return GOOGLE[name]
    first = next(iter(families()[name].architectures.values()))
    return shrunk({**first.config, "family": name})


def outputs_of(config, num_classes, platform="cpu"):
    """What a model returns in both modes, as shapes; no type is promoted on the way."""
    model = from_config(config, num_classes=num_classes)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    @attending("auto", platform=platform)
    def run(*inputs):
        variables = model.init(rngs, *inputs, train=False)
        apply = functools.partial(model.apply, rngs=rngs, mutable=["batch_stats"])
        return [apply(variables, *inputs, train=train) for train in (False, True)]

    inputs = names.one_of(config, (64, 64)).values()
    outputs = jax.eval_shape(run, *(jax.ShapeDtypeStruct((2, *s[1:]), d) for s, d in inputs))
    for leaf in jax.tree.leaves(outputs):
        assert leaf.dtype == jnp.float32
    return [output for output, _ in outputs]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", [*taking("images"), *GOOGLE])
def test_both_modes_return_logits_and_promote_no_type(name, platform):
    outputs = outputs_of(config_of(name), 5, platform)
    assert [logits.shape for logits in outputs] == [(2, 5)] * 2


@pytest.mark.parametrize("name", taking("tokens"))
def test_text_towers(name):
    for embedding, seen in outputs_of(config_of(name), 5):
        assert embedding.shape == seen["logits"].shape == (2, 5)


@pytest.mark.parametrize("name", ["LiT-B16B", "LiT-L16Ti"])
def test_two_towers(name):
    for zimg, ztxt, _ in outputs_of(shrunk(resolve(name).config.to_dict()), 0):
        assert zimg.shape == ztxt.shape == (2, 32)


def test_promotion_is_an_error_here():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.bfloat16) + jnp.ones(2)

"""What every model returns, in evaluation and training: logits, of which no type was promoted."""

import functools

import jax
import jax.numpy as jnp
import pytest
from recipes import golden_json

from vit_jax.families.registry import families, shrunk
from vit_jax.layers.attention.choice import attending
from vit_jax.models import from_config

SMALL = golden_json("small.json")
GOOGLE = {name: SMALL[name]["config"] for name in ("tiny-hot", "tiny-r-1-1", "tiny-mixer")}


def config_of(name):
    if name in GOOGLE:
        return GOOGLE[name]
    first = next(iter(families()[name].architectures.values()))
    return shrunk({**first.config, "family": name})


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", [*families(), *GOOGLE])
def test_both_modes_return_logits_and_promote_no_type(name, platform):
    model = from_config(config_of(name), num_classes=5)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    @attending("auto", platform=platform)
    def run(images):
        variables = model.init(rngs, images, train=False)
        apply = functools.partial(model.apply, rngs=rngs, mutable=["batch_stats"])
        return [apply(variables, images, train=train) for train in (False, True)]

    images = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
    outputs = jax.eval_shape(run, images)
    assert [logits.shape for logits, _ in outputs] == [(2, 5)] * 2
    for leaf in jax.tree.leaves(outputs):
        assert leaf.dtype == jnp.float32


def test_promotion_is_an_error_here():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.bfloat16) + jnp.ones(2)

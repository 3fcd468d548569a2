"""The operations that TPUs and GPUs get, computed here: the models are the same with them.

On CPU attention and patches are computed by other products (`layers/attention`, `layers/patch.py`),
with which all other figures are compared.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels import equations
from recipes import flatten, golden_json, random_images, unflatten

from vit_jax.families.registry import resolve, shrunk
from vit_jax.layers import attention, patch
from vit_jax.layers.attention.choice import attending
from vit_jax.models import from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error

# In float64 Flax's norms promote the float32 constants that they hold.
pytestmark = pytest.mark.promotes

# A family for each kind of attention and of patches.
NAMES = (
    "deit_tiny_distilled_patch16_224",
    "cait_xxs24_224",
    "tnt_s_patch16_224",
    "crossvit_9_240",
    "levit_128s",
    "botnet26t_256",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b2_li",
    "twins_svt_small",
    "cvt_13",
)
GOLDEN = golden_json("small.json")
GOOGLE = {name: GOLDEN[name] for name in ("tiny-hot", "tiny-r-1-1", "tiny-mixer")}


@functools.cache
def case(name):
    """A tiny model, its variables, random in every element, and its images; all in float64."""
    if name in GOOGLE:
        config, size = GOOGLE[name]["config"], GOOGLE[name]["image"]
    else:
        config, size = shrunk(resolve(name).config.to_dict()), (64, 64)
    model = from_config(config, num_classes=5)
    images = random_images((2, *size, 3)).astype(np.float64)
    init = functools.partial(model.init, train=False)
    shapes = flatten(jax.eval_shape(init, jax.random.key(0), images.astype(np.float32)))
    rng = np.random.default_rng(0)
    variables = {}
    for key, leaf in sorted(shapes.items()):
        kernel = key.endswith("kernel")
        x = rng.standard_normal(leaf.shape) * (np.prod(leaf.shape[:-1]) ** -0.5 if kernel else 0.1)
        variables[key] = abs(x) + 0.5 if key.endswith(("scale", "/var")) else x
    return model, unflatten(variables), images


def forward(name, platform):
    model, variables, images = case(name)
    function = attending("auto", platform=platform)(functools.partial(model.apply, train=False))
    return function, variables, images


def logits(name, platform):
    function, variables, images = forward(name, platform)
    with jax.enable_x64(True):
        # A function of its own each time: a test may have changed what it is made of.
        return np.asarray(jax.jit(lambda *args: function(*args))(variables, images))


@functools.cache
def on_cpu(name):
    return logits(name, "cpu")


def products(name, platform):
    function, variables, images = forward(name, platform)
    with jax.enable_x64(True):
        program = jax.make_jaxpr(function)(variables, images)
    kinds = ("dot_general", "conv_general_dilated")
    return [str(e) for e in equations(program) if e.primitive.name in kinds]


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("name", [*NAMES, *GOOGLE])
def test_models_are_the_same(name, platform):
    if platform == "gpu":  # In float64 it gets the operations of TPUs, one by one.
        assert products(name, "gpu") == products(name, "tpu") != products(name, "cpu")
        return
    assert relative_error(logits(name, "tpu"), on_cpu(name)) <= FLOAT64_BAR


def _another_softmax(scores, dtype):
    return jax.nn.softmax(scores * (1 + 1e-6), axis=-1).astype(dtype)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "cvt_13"])
def test_another_attention_is_seen(name, monkeypatch):
    monkeypatch.setattr(attention, "_weights", _another_softmax)
    assert relative_error(logits(name, "tpu"), on_cpu(name)) > FLOAT64_BAR


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "tiny-mixer"])
def test_other_patches_are_seen(name, monkeypatch):
    product = patch._product

    def turned(x, kernel, *args, **kwargs):
        return product(x, jnp.swapaxes(kernel, 0, 1), *args, **kwargs)

    on_cpu(name)
    monkeypatch.setattr(patch, "_product", turned)
    assert relative_error(logits(name, "tpu"), logits(name, "cpu")) > FLOAT64_BAR

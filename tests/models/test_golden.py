"""The models against figures of the original code (tests/golden)."""

import functools

import jax
import numpy as np
import pytest
from kernels import kernels
from recipes import GOLDEN, flatten, golden_json, random_images, random_params, sha256

from vit_jax.configs.models import MODEL_CONFIGS
from vit_jax.layers.attention.choice import attending
from vit_jax.layers.attention.packed import Heads
from vit_jax.models import from_config, get_model

SHAPES = golden_json("shapes.json")
SMALL = golden_json("small.json")


def param_shapes(model, image: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), np.ones((1, *image, 3), np.float32))
    return {name: leaf.shape for name, leaf in flatten(params["params"]).items()}


def jitted(model):
    return jax.jit(functools.partial(model.apply, train=False))


def test_every_configuration_has_a_golden_entry():
    # The one size of ours that the original has no configuration for; LiT has its own figures.
    others = {name for name in MODEL_CONFIGS if name.startswith("LiT")} | {"ViT-g_14"}
    assert set(SHAPES) == set(MODEL_CONFIGS) - others


@pytest.mark.parametrize("name", SHAPES)
def test_names_shapes_and_counts_are_the_originals(name):
    golden = SHAPES[name]
    shapes = param_shapes(
        get_model(name, num_classes=golden["num_classes"]), (golden["image"],) * 2
    )
    assert shapes == {k: tuple(v) for k, v in golden["params"].items()}
    assert sum(int(np.prod(s)) for s in shapes.values()) == golden["count"]


@pytest.mark.parametrize("name", ["ViT-Ti_16", "R26+ViT-S_32", "Mixer-B_32"])
def test_logits_of_full_size_models(name):
    golden = np.load(GOLDEN / f"logits_{name}.npz")
    model = get_model(name, num_classes=1000)
    params = random_params(param_shapes(model, (224, 224)), scale=0.02)
    assert sha256(params) == str(golden["params_sha256"])
    # Compiled, as the figures were: run op by op, R26+S/32 rounds differently by 1.3e-5.
    logits = jitted(model)({"params": params}, random_images((2, 224, 224, 3)))
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-5 * golden["logits"].std())


def small_model(name, attend, platform=None):
    """What gives its logits, its variables, its images, and the figures."""
    golden = SMALL[name]
    model = from_config(golden["config"], num_classes=golden["num_classes"])
    params = random_params(param_shapes(model, golden["image"]), golden["scale"])
    forward = attending(attend, platform=platform)(functools.partial(model.apply, train=False))
    images = random_images((2, *golden["image"], 3))
    return forward, {"params": params}, images, np.load(GOLDEN / f"small_{name}.npz")


def error(got, wanted):
    return np.abs(got - wanted).max() / wanted.std()


@pytest.mark.parametrize(
    ("attend", "platform"), [("auto", None), ("xla", None), ("packed", None), ("auto", "tpu")]
)
@pytest.mark.parametrize("name", SMALL)
def test_logits_of_small_models(name, attend, platform):
    forward, variables, images, figures = small_model(name, attend, platform)
    for key, value in flatten(variables["params"]).items():
        np.testing.assert_array_equal(value, figures[f"param:{key}"])
    blocks = SMALL[name]["config"].get("transformer", {}).get("num_layers", 0)
    taken = ["packed_attention_forward"] * (blocks if attend == "packed" else 0)
    assert kernels(forward, variables, images) == taken
    assert error(jax.jit(forward)(variables, images), figures["logits"]) <= 1e-5


def test_a_kernel_that_is_wrong_is_seen(monkeypatch):
    scale = property(lambda heads: 1.01 * heads.width**-0.5)
    monkeypatch.setattr(Heads, "score_scale", scale)
    forward, variables, images, figures = small_model("tiny-hot", "packed")
    assert error(jax.jit(forward)(variables, images), figures["logits"]) > 1e-5

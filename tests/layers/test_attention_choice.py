"""Which program computes attention: it is the one that was asked for, or an error that says why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from kernels import kernels

from vit_jax import inference, models
from vit_jax.checkpoint.facts import Model
from vit_jax.configs.inference_time import get_config as get_inference_time_config
from vit_jax.configs.models import get_testing_config
from vit_jax.errors import UserError
from vit_jax.evaluate.features import FeatureModel
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import resolve
from vit_jax.inference_time import inference_time
from vit_jax.layers.attention import MultiHeadDotProductAttention, choice, packed
from vit_jax.layers.attention.choice import Attending, attending
from vit_jax.layers.talking_heads import TalkingHeadsAttention
from vit_jax.layers.windows import WindowAttention
from vit_jax.models import from_config

TOKENS = (2, 17, 32)
PLAIN = functools.partial(MultiHeadDotProductAttention, num_heads=2)
FORWARD = "packed_attention_forward"


class Inherited(MultiHeadDotProductAttention):
    """It says nothing of being packable, though it is."""


# What is called, on what, how, and why the packed kernel cannot compute it.
REFUSED = {
    "dropout": (
        functools.partial(PLAIN, dropout_rate=0.5),
        TOKENS,
        {"train": True},
        "cannot compute this attention: dropout of its weights at a rate of 0.5",
    ),
    "bias": (
        PLAIN,
        TOKENS,
        {"bias": jnp.linspace(-1, 1, 17).reshape(1, 1, 1, 17)},
        "no attention of this model .*its scores have a bias",
    ),
    "queries": (PLAIN, TOKENS, {"queries": jnp.ones((2, 1, 32))}, "queries or values are not"),
    "values": (PLAIN, TOKENS, {"values": jnp.ones(TOKENS)}, "queries or values are not"),
    "talking heads": (
        functools.partial(TalkingHeadsAttention, num_heads=2),
        TOKENS,
        {},
        "TalkingHeadsAttention is another kind",
    ),
    "windows": (
        functools.partial(WindowAttention, num_heads=2),
        (1, 14, 7, 32),
        {},
        "WindowAttention is another kind",
    ),
    "a subclass": (functools.partial(Inherited, num_heads=2), TOKENS, {}, "Inherited is another"),
}


def called(layer, shape, call, attend, mesh=None, platform=None, dtype=jnp.float32):
    """A layer as a function of its input, and that input."""
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    variables = jax.jit(functools.partial(layer.init, train=False))(jax.random.key(1), x)
    params = {"params": jax.tree.map(lambda w: w + 0.1, variables["params"])}

    def apply(x):
        rngs = {"dropout": jax.random.key(2)}
        return layer.apply(params, x, rngs=rngs, **{"train": False, **call})

    return attending(attend, mesh, platform)(apply), x


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_kernel_cannot_do_is_an_error_that_says_why(what):
    make, shape, call, reason = REFUSED[what]
    forward, x = called(make(), shape, call, "packed")
    with pytest.raises(UserError, match=f"attend='packed'.*{reason}"):
        jax.eval_shape(forward, x)


@pytest.mark.parametrize("what", REFUSED)
def test_auto_computes_it_plainly(what):
    make, shape, call, _ = REFUSED[what]
    narrow = {"platform": "tpu", "dtype": jnp.bfloat16}
    forward, x = called(make(dtype=jnp.bfloat16), shape, call, "auto", **narrow)
    assert kernels(forward, x) == []
    forward, x = called(PLAIN(dtype=jnp.bfloat16), TOKENS, {}, "auto", **narrow)
    assert kernels(forward, x) == [FORWARD]


def test_lengths_that_do_not_fit_the_chip(monkeypatch):
    monkeypatch.setattr(packed, "_MOST_VMEM", 2**20)
    forward, x = called(PLAIN(), TOKENS, {}, "packed")
    with pytest.raises(UserError, match="the scores of 17 tokens do not fit on the chip"):
        jax.eval_shape(forward, x)


def mesh_of(data, model=1):
    types = (jax.sharding.AxisType.Auto,) * 3
    devices = jax.devices()[: data * model]
    return jax.make_mesh(
        (data, 1, model), ("data", "fsdp", "model"), axis_types=types, devices=devices
    )


def test_meshes_that_the_kernel_cannot_run_on():
    forward, x = called(PLAIN(), TOKENS, {}, "packed", mesh_of(4))
    with pytest.raises(UserError, match="4 devices do not divide 2 images"):
        jax.eval_shape(forward, x)
    with (
        pytest.raises(UserError, match="model=2 splits the heads"),
        attending("packed", mesh_of(2, 2)),
    ):
        pass


@pytest.mark.parametrize("fields", [{}, {"dropout_rate": 0.5}, {"qkv_bias": False}], ids=str)
def test_negative_control_what_the_kernel_can_do(fields):
    packed, x = called(PLAIN(**fields), TOKENS, {}, "packed")
    assert kernels(packed, x) == [FORWARD]
    xla, _ = called(PLAIN(**fields), TOKENS, {}, "xla")
    assert 0 < np.abs(jax.jit(packed)(x) - jax.jit(xla)(x)).max() < 1e-5


def tiny(name, **fields):
    model = from_config(resolve(name).config.to_dict() | fields, num_classes=5)
    images = jnp.ones((2, 32, 48, 3))
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images
    )
    return model, variables, images


_STAGES = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}


@pytest.mark.parametrize(
    ("name", "fields", "taken"),
    [
        ("deit_tiny_patch16_224", {"num_layers": 2}, 2),
        # Class tokens that look at another branch's patches have no kernel, the branches have.
        ("crossvit_tiny_240", {"depths": ((1, 1, 1),)}, 2),
        ("cait_xxs24_224", {"num_layers": 2}, "TalkingHeadsAttention"),
        ("swin_tiny_patch4_window7_224", _STAGES, "ShiftedWindowAttention"),
        ("pvt_v2_b0", _STAGES, "ReducedAttention"),
        ("levit_128s", {}, "bias"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_model_in_which_nothing_is_packed_is_an_error(name, fields, taken):
    model, variables, images = tiny(name, **fields)
    forward = attending("packed")(functools.partial(model.apply, train=False))
    if isinstance(taken, int):
        assert len(kernels(forward, variables, images)) == taken
        return
    with pytest.raises(UserError, match="attend='packed': no attention of this model") as error:
        jax.eval_shape(forward, variables, images)
    if taken != "bias":
        assert taken in str(error.value)


# --- the choice is part of what is compiled ------------------------------------------------------


def test_a_compiled_function_is_traced_again_under_another_choice():
    layer, x = PLAIN(), jax.random.normal(jax.random.key(0), TOKENS)
    params = {"params": layer.init(jax.random.key(1), x, train=False)["params"]}
    traced = []

    @jax.jit
    def forward(x):
        traced.append(choice.current().name)
        return layer.apply(params, x, train=False)

    forward(x)
    for name in ("packed", "xla", "packed"):
        with attending(name):
            forward(x)
            forward(x)
    forward(x)
    assert traced == ["auto", "packed", "xla"]
    with attending("packed"):
        assert kernels(forward, x) == [FORWARD]
    assert kernels(forward, x) == []


def test_without_a_name_it_is_the_choice_around():
    layer, x = PLAIN(), jax.random.normal(jax.random.key(0), TOKENS)
    params = {"params": layer.init(jax.random.key(1), x, train=False)["params"]}
    forward = jax.jit(attending()(functools.partial(layer.apply, params, train=False)))
    forward(x)
    assert kernels(forward, x) == []
    with attending("packed"):
        assert kernels(forward, x) == [FORWARD]
    with attending("auto", platform="tpu"), attending():
        assert not choice.on_cpu()
        assert choice.current().known


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_auto_without_a_mesh_takes_kernels_on_several_devices(platform):
    assert jax.device_count() == 4
    layer = PLAIN(dtype=jnp.bfloat16)
    forward, x = called(layer, TOKENS, {}, "auto", platform=platform, dtype=jnp.bfloat16)
    assert kernels(forward, x) == ([FORWARD] if platform == "tpu" else [])


def test_where_nobody_says_how_the_program_lies_it_may_be_split():
    """Shardings of arguments are not seen while it is traced; a kernel would not compile."""
    assert isinstance(Attending().shards(), str)
    with attending():
        assert choice.current().shards() == 1
    with attending("auto", mesh_of(4)):
        assert choice.current().shards() == 4


def test_auto_says_once_what_it_took(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *args: said.append(text % args))
    choice._log.cache_clear()
    for _ in range(2):
        for dtype in (jnp.bfloat16, jnp.float32):
            layer = PLAIN(dtype=dtype)
            forward, x = called(layer, TOKENS, {}, "auto", platform="tpu", dtype=dtype)
            jax.eval_shape(forward, x)
    assert said == [
        "attend='auto' took packed",
        "attend='auto' took xla (float32, not bfloat16)",
    ]


@pytest.mark.parametrize("attend", ["packed", "xla"])
def test_stage_maps_change_nothing(attend):
    """The program that gives maps of a model with stages is the one that gives its logits."""
    config = resolve("pit_ti_224").config.to_dict() | {"depths": (1, 1, 1)}
    model = from_config(config, num_classes=5)
    images = jnp.ones((1, 64, 64, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    maps = attending(attend)(functools.partial(models.feature_maps, model))
    logits = attending(attend)(functools.partial(model.apply, train=False))
    taken = kernels(maps, variables, images)
    assert taken == kernels(logits, variables, images) == [FORWARD] * (3 * (attend == "packed"))


# --- who runs it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights():
    config = get_testing_config().to_dict()
    model = from_config(config, num_classes=3)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), shapes["params"])
    known = Model("tiny", config, 3, (16, 16), Preprocess(16), None)
    return inference.Weights(known, {"params": params, "batch_stats": {}})


def runner_of(kind, weights):
    """What predicts and evaluates, or what a probe looks at, as a function of images."""
    if kind == "features":
        return FeatureModel(weights)
    model = from_config(weights.model.config, num_classes=3)
    return inference.LoadedModel(weights, model, {"params": weights.params}).logits


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_predictions_and_probes_run_what_is_asked_for(kind, weights, monkeypatch):
    run, images, taken = runner_of(kind, weights), np.ones((2, 16, 16, 3), np.float32), []

    def packed_over_mesh(qkv, bias, heads):
        taken.append(choice.current())
        return jnp.zeros((*qkv.shape[:2], heads.lanes), qkv.dtype)

    monkeypatch.setattr(choice, "packed_over_mesh", packed_over_mesh)
    plain = run(images)
    assert not taken
    with attending("packed"):
        other = run(images)
    blocks = weights.model.config["transformer"]["num_layers"]
    assert len(taken) == blocks
    assert all(asked.known and asked.mesh is None for asked in taken)
    assert np.abs(other - plain).max() > 0
    np.testing.assert_array_equal(run(images), plain)
    assert len(taken) == blocks


@pytest.mark.parametrize("attend", ["auto", "packed", "cudnn"])
def test_inference_time_runs_what_its_config_says(attend, tmp_path, monkeypatch):
    config = get_inference_time_config().unlock()
    config.model_name, config.attend = "testing", attend
    config.batch, config.num_classes, config.image_size = 4, 3, 16
    config.steps = config.initial_steps = 1
    seen = []
    real = choice.takes_packed

    def takes_packed(*args):
        seen.append(choice.current())
        return real(*args)

    monkeypatch.setattr(choice, "takes_packed", takes_packed)
    if attend == "cudnn":
        with pytest.raises(UserError, match="needs NVIDIA GPUs"):
            inference_time(config, tmp_path)
        return
    inference_time(config, tmp_path)
    assert {asked.name for asked in seen} == {attend}
    assert {asked.shards() for asked in seen} == {4}

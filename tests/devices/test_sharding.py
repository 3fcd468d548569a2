"""Layouts over meshes of four devices: what lies where, and that nothing else changes."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from kernels import kernels
from recipes import flatten, random_images

from vit_jax.configs import common, models
from vit_jax.devices.sharding import check_batch, make_mesh, param_shardings
from vit_jax.errors import UserError
from vit_jax.models import get_model
from vit_jax.train import engine as engine_lib
from vit_jax.train.step import make_train_step

MESHES = {
    "data": {"data": 4},
    "fsdp": {"data": 1, "fsdp": 4},
    "model": {"data": 1, "model": 4},
    "data and fsdp": {"data": 2, "fsdp": 2},
    "fsdp and model": {"data": 1, "fsdp": 2, "model": 2},
}
IMAGES = random_images((8, 32, 32, 3))
LABELS = np.eye(6, dtype=np.float32)[np.arange(8) % 6]


def config_of(mesh: dict, optim: str = "sgd", attend: str = "auto", **encoder):
    config = common.get_config()
    config.attend = attend
    config.model = models.get_testing_config()
    config.model.patches.size = (8, 8)
    config.model.hidden_size = 64
    config.model.transformer = {
        "num_layers": 2, "num_heads": 4, "mlp_dim": 128,
        "dropout_rate": 0.0, "attention_dropout_rate": 0.0, **encoder,
    }  # fmt: skip
    config.mesh = mesh
    config.optim, config.optim_dtype, config.base_lr = optim, "float32", 0.01
    config.batch, config.batch_eval, config.accum_steps, config.pp.crop = 8, 8, 1, 32
    config.total_steps, config.warmup_steps = 5, 0
    return common.with_defaults(config)


def build(*args, **kwargs):
    config = config_of(*args, **kwargs)
    return engine_lib.build(config, make_mesh(config.mesh), num_classes=6)


def three_steps(engine):
    state, losses = engine.init(jax.random.key(0)), []
    batch = jax.device_put({"image": IMAGES, "label": LABELS}, engine.batch)
    for _ in range(3):
        state, scalars = engine.train_step(state, batch, jax.random.key(1))
        losses.append(float(scalars["loss"]))
    return state, losses


@functools.cache
def plain(optim: str):
    """On one device."""
    config = config_of({"data": 1}, optim)
    engine = engine_lib.build(config, _one_device(), num_classes=6)
    state, losses = three_steps(engine)
    return flatten(jax.device_get(state.params)), losses


def _one_device():
    from vit_jax.devices.sharding import AXES, AxisType

    return jax.make_mesh(
        (1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1]
    )


CASES = [(mesh, "sgd", "auto") for mesh in MESHES] + [
    ("data and fsdp", "adamw", "auto"),
    ("fsdp and model", "adamw", "auto"),
    ("data and fsdp", "adafactor", "auto"),
    ("fsdp and model", "lamb", "auto"),
    ("fsdp", "lion", "auto"),
    ("data", "sgd", "packed"),
    ("data and fsdp", "sgd", "packed"),
    ("fsdp and model", "sgd", "xla"),
]


@pytest.mark.parametrize(("mesh", "optim", "attend"), CASES)
def test_every_mesh_trains_like_one_device_and_keeps_its_layout(mesh, optim, attend):
    engine = build(MESHES[mesh], optim, attend)
    state, losses = three_steps(engine)
    params, expected = plain(optim)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    if optim == "sgd":  # Adam divides by gradients near zero: there only losses are comparable
        for name, want in params.items():
            got = flatten(jax.device_get(state.params))[name]
            scale = 1.0 if name.endswith("key/bias") else np.abs(want).max()
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale, err_msg=name)
    drifted = jax.tree.map(
        lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, engine.shardings
    )
    assert all(jax.tree.leaves(drifted))


@pytest.mark.parametrize("mesh", MESHES)
def test_the_kernel_is_taken_where_heads_are_not_split(mesh):
    """Where they are it is refused by its name, and 'auto' takes what 'xla' is, to the letter."""
    key, batch = jax.random.key(1), {"image": IMAGES, "label": LABELS}
    if "model" not in mesh:
        packed = build(MESHES[mesh], attend="packed")
        taken = kernels(packed.train_step, jax.eval_shape(packed.init, key), batch, key)
        assert len(taken) == 4  # forward and backward of two blocks
        return
    with pytest.raises(UserError, match=r"model=\d splits the heads"):
        build(MESHES[mesh], attend="packed")
    auto, xla = (build(MESHES[mesh], attend=name) for name in ("auto", "xla"))
    state = jax.eval_shape(auto.init, key)
    programs = [e.train_step.lower(state, batch, key).as_text() for e in (auto, xla)]
    assert programs[0] == programs[1]


def test_layout_of_heads_hidden_units_and_moments():
    engine = build({"data": 1, "fsdp": 2, "model": 2}, "adamw")
    specs = {k: v.spec for k, v in flatten(engine.shardings.params).items()}
    block = "Transformer/encoderblock_1"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    assert specs[f"{attention}/query/kernel"] == P("fsdp", "model", None)
    assert specs[f"{attention}/out/kernel"] == P("model", None, "fsdp")
    assert specs[f"{block}/MlpBlock_0/Dense_1/kernel"] == P("model", "fsdp")
    assert specs["embedding/kernel"] == P(None, None, None, "fsdp")
    assert specs[f"{block}/LayerNorm_0/scale"] == P()
    adam = engine.shardings.opt_state[1][0]
    assert flatten(adam.mu) == flatten(adam.nu) == flatten(engine.shardings.params)
    assert adam.count.spec == P()


def test_scanned_blocks_lie_as_unscanned_ones():
    plain, scanned = (build({"data": 1, "fsdp": 2, "model": 2}, scan=s) for s in (False, True))
    one, stack = (flatten(e.shardings.params) for e in (plain, scanned))
    name = "MultiHeadDotProductAttention_0/query/kernel"
    assert stack[f"Transformer/encoderblock/{name}"].spec == P(None, "fsdp", "model", None)
    assert one[f"Transformer/encoderblock_1/{name}"].spec == P("fsdp", "model", None)


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_bytes_per_device_of_vit_b16_under_fsdp(optim):
    """At most 1/8 and 5 % of it, for parameters and optimizer state together."""
    mesh = jax.sharding.AbstractMesh((1, 8, 1), ("data", "fsdp", "model"))
    config = config_of({"data": 1}, optim)
    model = get_model("ViT-B_16")
    tx = engine_lib.make_optimizer(config, lambda step: 0.1)
    init = functools.partial(engine_lib.init_state, model, tx, image_size=224)
    state = jax.eval_shape(init, jax.random.key(0))
    layout = engine_lib.state_shardings(state, mesh, config)

    def size(x, shape):
        return int(np.prod(shape)) * x.dtype.itemsize

    total = sum(size(x, x.shape) for x in jax.tree.leaves(state))
    shard = sum(
        size(x, s.shard_shape(x.shape))
        for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True)
    )
    assert total > 86e6 * 4
    assert shard <= total / 8 * 1.05


def test_rules_of_the_user_come_first():
    params = jax.eval_shape(
        functools.partial(get_model("testing").init, train=False), jax.random.key(0), IMAGES
    )["params"]
    mesh = make_mesh({"data": 1, "fsdp": 2, "model": 2})
    layout = param_shardings(params, mesh, [(r".*/kernel", ()), (r"head/.*", ("model",))])
    assert layout["head"]["kernel"].spec == P()
    assert layout["head"]["bias"].spec == P("model")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("haed/.*", ())], "'haed/.*' matches no parameter"),
        ([("head/kernel", ("fsdp",))], "expected an axis or None for each dimension"),
        ([("head/bias", ("model",))], "mesh.model=4 does not divide head/bias"),
    ],
)
def test_bad_rules(rules, message):
    config = config_of({"data": 1, "model": 4})
    config.sharding_rules = tuple(rules)
    with pytest.raises(UserError) as error:
        engine_lib.build(config, make_mesh(config.mesh), num_classes=6)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 8}, "does not fit 4 devices"),
        ({"data": 3}, "does not fit 4 devices"),
        ({"data": 2}, "uses 2 of 4 devices"),
        ({"data": -1, "fsdp": -1}, "one of them may be -1"),
        ({"dta": 1}, "Did you mean 'data'"),
    ],
)
def test_bad_meshes(sizes, message):
    with pytest.raises(UserError) as error:
        make_mesh(sizes)
    assert message in str(error.value)


def test_accumulation_keeps_one_buffer_of_gradients():
    """One buffer of the parameters' size; each part's gradient is added as soon as it is there."""
    model, tx = get_model("ViT-S_16", num_classes=10), optax.sgd(0.1)
    init = functools.partial(engine_lib.init_state, model, tx, image_size=32)
    state = jax.eval_shape(init, jax.random.key(0))
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))

    def temporary(accum_steps: int) -> float:
        step = jax.jit(make_train_step(model, tx, accum_steps=accum_steps), donate_argnums=0)
        batch = {
            "image": jax.ShapeDtypeStruct((2 * accum_steps, 32, 32, 3), np.float32),
            "label": jax.ShapeDtypeStruct((2 * accum_steps, 10), np.float32),
        }
        compiled = step.lower(state, batch, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes / size

    assert temporary(4) - temporary(1) < 1.05


def test_the_model_axis_shares_a_batch():
    mesh = make_mesh({"data": 1, "fsdp": 2, "model": 2})
    check_batch("batch", 2, mesh)
    with pytest.raises(UserError, match="devices that split it, 2"):
        check_batch("batch", 3, mesh)

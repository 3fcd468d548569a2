"""Optimizers against NumPy, in float32 states; their states; scanned models; frozen parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_helpers import build_optimizer, orthogonal, random_tree
from recipes import flatten, unflatten

from vit_jax.checkpoint.stacked import stack_blocks, unstack_blocks
from vit_jax.errors import UserError
from vit_jax.train.optimizers import averaged, per_layer

OPTIMIZERS = ("sgd", "adamw", "adafactor", "lamb", "lion", "muon", "schedule_free_adamw")
STEPS = 4
# Every kernel is Muon's, so that the same few shapes serve all optimizers.
EVERY_KERNEL = {"muon": {"muon_rules": [(".*", True)]}}


def rate(step):
    return 0.1 / (1.0 + step)


def train(tx, params, grads) -> tuple[dict, object]:
    """Parameters and state after an update for each of `grads`."""
    update = jax.jit(tx.update)
    state = jax.jit(tx.init)(params)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params), state


# ---- the formulas, in float64, one tensor at a time ----


def sgd(p, grads, decay):
    m = 0
    for t, g in enumerate(grads):
        m = 0.9 * m + g
        p = p - rate(t) * (m + decay * p)
    return p


def adam_directions(grads, eps):
    m = v = 0
    for t, g in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        yield m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + eps)


def adamw(p, grads, decay):
    for t, u in enumerate(adam_directions(grads, 1e-8)):
        p = p - rate(t) * (u + decay * p)
    return p


def lamb(p, grads, decay):
    for t, u in enumerate(adam_directions(grads, 1e-6)):
        u = u + decay * p
        p = p - rate(t) * u * np.linalg.norm(p) / np.linalg.norm(u)
    return p


def lion(p, grads, decay):
    m = 0
    for t, g in enumerate(grads):
        p = p - rate(t) * (np.sign(0.9 * m + 0.1 * g) + decay * p)
        m = 0.99 * m + 0.01 * g
    return p


def adafactor(p, grads, decay, cap=0.999, clip=None):
    """On a matrix; the row and column means of g² stand for g² where both sides are 32 or more."""
    m = row = column = full = 0
    for t, g in enumerate(grads):
        b2 = min(cap, 1 - (t + 1) ** -0.8)
        square = g**2 + 1e-30
        if min(p.shape) >= 32 and p.ndim == 2:
            row = b2 * row + (1 - b2) * square.mean(1)
            column = b2 * column + (1 - b2) * square.mean(0)
            second = np.outer(row, column) / row.mean()
        else:
            full = second = b2 * full + (1 - b2) * square
        u = g / np.sqrt(second)
        if clip:
            u = u / max(1, np.sqrt((u**2).mean()) / clip)
        m = 0.9 * m + 0.1 * u
        p = p - rate(t) * (m + decay * p)
    return p


def muon(p, grads, decay):
    if p.ndim == 1:
        return adamw(p, grads, decay)
    m = 0
    for t, g in enumerate(grads):
        m = 0.95 * m + 0.05 * g
        nesterov = 0.95 * m / (1 - 0.95 ** (t + 2)) + 0.05 * g / (1 - 0.95 ** (t + 1))
        u = 0.2 * np.sqrt(max(p.shape)) * orthogonal(nesterov)
        p = p - rate(t) * (u + decay * p)
    return p


def schedule_free(p, grads, decay, evaluated=False):
    x = y = z = p
    v = weights = fastest = 0
    for t, g in enumerate(grads):
        v = 0.999 * v + 0.001 * g**2
        u = g / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        z = z - rate(t) * (u + decay * y)
        fastest = max(fastest, rate(t))
        weights += fastest**2
        x = x + fastest**2 / weights * (z - x)
        y = 0.9 * x + 0.1 * z
    return x if evaluated else y


FORMULAS = {
    "sgd": sgd,
    "adamw": adamw,
    "adafactor": adafactor,
    "lamb": lamb,
    "lion": lion,
    "muon": muon,
    "schedule_free_adamw": schedule_free,
}
SHAPES = {"embedding/kernel": (32, 40), "head/kernel": (40, 3), "head/bias": (3,)}
PARAMS = random_tree(SHAPES, 0)
GRADS = [random_tree(SHAPES, seed) for seed in range(1, STEPS + 1)]


def assert_formula(formula, got, decay=0.3):
    grads = [flatten(g) for g in GRADS]
    for name, p in flatten(PARAMS).items():
        want = formula(
            p.astype(np.float64),
            [g[name].astype(np.float64) for g in grads],
            decay if name.endswith("kernel") else 0.0,
        )
        np.testing.assert_allclose(flatten(got)[name], want, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_updates_are_the_formula(optim):
    tx = build_optimizer(optim, rate, weight_decay=0.3, **EVERY_KERNEL.get(optim, {}))
    got, state = train(tx, PARAMS, GRADS)
    assert_formula(FORMULAS[optim], got)
    best = averaged(state, got)
    if optim == "schedule_free_adamw":
        assert_formula(functools.partial(schedule_free, evaluated=True), jax.device_get(best))
    else:
        assert best is got
    with pytest.raises(AssertionError):  # negative control: another decay is seen
        assert_formula(FORMULAS[optim], got, decay=0.29)


@pytest.mark.parametrize(
    "settings",
    [{"optim_b2": 0.5}, {"optim_clip": 0.8}, {"optim_b2": 0.4, "optim_clip": 0.5}],
    ids=str,
)
def test_the_cap_and_the_clipping_of_adafactor(settings):
    tx = build_optimizer("adafactor", rate, weight_decay=0.3, **settings)
    cap, clip = settings.get("optim_b2", 0.999), settings.get("optim_clip")
    assert_formula(lambda *args: adafactor(*args, cap=cap, clip=clip), train(tx, PARAMS, GRADS)[0])


@pytest.mark.parametrize("optim", ["adamw", "lion"])
def test_b1_and_b2_reach_optax(optim):
    reference = {"adamw": optax.adamw, "lion": optax.lion}[optim]
    got, _ = train(build_optimizer(optim, lambda _: 0.1, optim_b1=0.8, optim_b2=0.9), PARAMS, GRADS)
    want, _ = train(reference(0.1, b1=0.8, b2=0.9, weight_decay=0.0), PARAMS, GRADS)
    for name, value in flatten(want).items():
        np.testing.assert_allclose(flatten(got)[name], value, rtol=1e-6, atol=1e-7)


def test_clipping_is_global():
    norm = float(optax.tree.norm(GRADS[0]))
    tx = build_optimizer("sgd", lambda _: 1.0, grad_norm_clip=norm / 4)
    got, _ = train(tx, PARAMS, GRADS[:1])
    for name, p in flatten(PARAMS).items():
        want = p - flatten(GRADS[0])[name] / 4
        np.testing.assert_allclose(flatten(got)[name], want, rtol=1e-5, atol=1e-6)


# ---- states ----


def full_size(state, dtype) -> list[str]:
    """Places of what has the shape of the embedding and that type."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return [str(path) for path, x in leaves if x.shape == (32, 40) and x.dtype == dtype]


@pytest.mark.parametrize("optim", [name for name in OPTIMIZERS if name != "schedule_free_adamw"])
def test_the_first_moment_has_the_type_asked_for(optim):
    grads, changes = GRADS, EVERY_KERNEL.get(optim, {})
    exact, _ = train(build_optimizer(optim, rate, **changes), PARAMS, grads)
    tx = build_optimizer(optim, rate, optim_dtype="bfloat16", **changes)
    got, state = train(tx, PARAMS, grads)
    assert len(full_size(state, jnp.bfloat16)) == 1
    # The second moment stays float32, and Adafactor's is not of that size.
    assert len(full_size(state, jnp.float32)) == (optim in ("adamw", "lamb"))
    for name, value in flatten(exact).items():
        difference = np.abs(flatten(got)[name] - value)
        assert difference.max() < (0.3 if optim == "lion" else 0.02), name  # Lion takes signs
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(got))


def test_adafactor_takes_little_memory_scanned_or_not():
    """Kernels of a B/16 block: the second moment is a row and a column."""
    shapes = {
        f"Transformer/encoderblock_{i}/{name}": shape
        for i in range(2)
        for name, shape in {
            "MultiHeadDotProductAttention_0/query/kernel": (768, 12, 64),
            "MlpBlock_0/Dense_0/kernel": (768, 3072),
        }.items()
    }
    tx = build_optimizer("adafactor", rate, optim_dtype="bfloat16")
    for params in (
        unflatten(shapes),
        stack_blocks(unflatten({k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()})),
    ):
        params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(getattr(x, "shape", x), np.float32),
            params,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
        size = sum(x.size for x in jax.tree.leaves(params))
        assert sum(x.size for x in leaves if x.dtype == jnp.bfloat16) == size
        assert 0 < sum(x.size for x in leaves if x.dtype == jnp.float32) < 0.01 * size


# ---- stacked blocks ----


def blocks(layers: int) -> dict[str, tuple[int, ...]]:
    return {
        "embedding/kernel": (32, 34),
        **{
            f"Transformer/encoderblock_{i}/{name}": shape
            for i in range(layers)
            for name, shape in {"LayerNorm_0/scale": (34,), "Dense_0/kernel": (34, 32)}.items()
        },
        "Transformer/encoder_norm/scale": (34,),
        "head/kernel": (34, 3),
    }


# As many layers as would themselves be factored.
MANY = 33
RULES = {
    "decay_rules": [(".*/encoderblock_1/.*/kernel", 0.5), (".*/kernel", 1.0), (".*", 0.0)],
    "lr_rules": [(".*/encoderblock_2/.*", 0.1), ("head/.*", 10.0), (".*", 1.0)],
    "freeze_rules": [(".*/encoderblock_3/.*|embedding/.*", True), (".*", False)],
}


def both_ways(tx, layers: int) -> tuple[dict, dict]:
    params = random_tree(blocks(layers), 0)
    grads = [random_tree(blocks(layers), seed) for seed in (1, 2)]
    plain, _ = train(tx, params, grads)
    stacked, _ = train(tx, stack_blocks(params), [stack_blocks(g) for g in grads])
    return flatten(plain), flatten(unstack_blocks(stacked))


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_scanned_model_trains_as_its_unscanned_twin(optim):
    clip = {"optim_clip": 0.9} if optim == "adafactor" else {}
    plain, stacked = both_ways(
        build_optimizer(
            optim, rate, weight_decay=0.3, grad_norm_clip=1.0, layer_decay=0.99, **RULES, **clip
        ),
        layers=MANY if optim == "adafactor" else 4,
    )
    for name, value in plain.items():
        np.testing.assert_allclose(stacked[name], value, rtol=2e-6, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("tx", "layers"),
    [
        (optax.scale_by_factored_rms(min_dim_size_to_factor=32), MANY),
        (optax.scale_by_trust_ratio(), 3),
        (optax.clip_by_block_rms(0.9), 3),
    ],
    ids=["factored", "trust_ratio", "block_rms"],
)
def test_negative_control_stacked_tensors_are_not_one_tensor(tx, layers):
    plain, stacked = both_ways(tx, layers)
    assert max(np.abs(stacked[name] - plain[name]).max() for name in plain) > 1e-2
    plain, stacked = both_ways(per_layer(tx), layers)
    for name, value in plain.items():
        np.testing.assert_allclose(stacked[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


# ---- rules ----


def test_multipliers_of_rate_and_decay():
    shapes = {name: shape for name, shape in blocks(3).items() if "LayerNorm" not in name}
    params, grad = random_tree(shapes, 0), random_tree(shapes, 1)
    rules = {name: RULES[name] for name in ("decay_rules", "lr_rules")}
    tx = build_optimizer("sgd", lambda _: 0.1, weight_decay=0.2, layer_decay=0.5, **rules)
    got = flatten(train(tx, params, [grad])[0])
    # (multiplier of the rate, of the decay)
    want = {
        "embedding/kernel": (0.5**4, 1.0),
        "Transformer/encoderblock_0/Dense_0/kernel": (0.5**3, 1.0),
        "Transformer/encoderblock_1/Dense_0/kernel": (0.5**2, 0.5),
        "Transformer/encoderblock_2/Dense_0/kernel": (0.5 * 0.1, 1.0),
        "Transformer/encoder_norm/scale": (1.0, 0.0),
        "head/kernel": (10.0, 1.0),
    }
    assert want.keys() == got.keys()
    for name, (faster, decay) in want.items():
        p, g = flatten(params)[name], flatten(grad)[name]
        np.testing.assert_allclose(
            got[name], p - 0.1 * faster * (g + 0.2 * decay * p), rtol=1e-5, atol=1e-6, err_msg=name
        )


def bits(x) -> np.ndarray:
    return np.asarray(x).view(np.uint32)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_frozen_parameters_stay_to_the_last_bit(optim, scan):
    shapes = {**SHAPES}
    shapes |= {f"Transformer/encoderblock_{i}/Dense_0/kernel": (32, 40) for i in range(3)}
    params = random_tree(shapes, 0)
    params["embedding"]["kernel"][0, :2] = [-0.0, 0.0]
    grads = [random_tree(shapes, seed) for seed in (1, 2)]
    frozen = ("embedding/kernel", "Transformer/encoderblock_1/Dense_0/kernel")
    for grad in grads:  # Not even what is not a number gets through.
        grad["embedding"]["kernel"][1] = np.nan
        grad["Transformer"]["encoderblock_1"]["Dense_0"]["kernel"][1] = np.inf
    tx = build_optimizer(
        optim,
        rate,
        weight_decay=0.3,
        grad_norm_clip=1.0,
        freeze_rules=[("embedding/.*|.*/encoderblock_1/.*", True), (".*", False)],
    )
    change = stack_blocks if scan else lambda tree: tree
    got, state = train(tx, change(params), [change(g) for g in grads])
    best = flatten(unstack_blocks(jax.device_get(averaged(state, got))))
    got = flatten(unstack_blocks(got))
    for name, before in flatten(params).items():
        if name in frozen:
            np.testing.assert_array_equal(bits(best[name]), bits(before), err_msg=name)
            np.testing.assert_array_equal(bits(got[name]), bits(before), err_msg=name)
        else:
            assert np.isfinite(got[name]).all(), name
            assert (got[name] != before).all(), name
    # No state for what is frozen as a whole.
    names = [str(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert any("head" in name for name in names)
    assert not any("'embedding'" in name for name in names)
    assert not any("encoderblock_1" in name for name in names)


def test_negative_control_adding_zero_changes_the_sign_of_zero():
    assert (
        bits(np.array([-0.0], np.float32) + np.float32(0.0)) != bits(np.array([-0.0], np.float32))
    ).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "adamx"}, "Did you mean 'adamw'"),
        ({"optim": "schedule_free_adamw", "optim_b1": 0.0}, "needs an optim_b1 above 0"),
        ({"optim": "muon", "muon_rules": [("haed/.*", True), (".*", False)]}, "muon_rules: no par"),
        ({"optim_momentum": 0.9}, "optim='adamw' has no optim_momentum"),
        ({"optim_dtype": "int8"}, "optim_dtype='int8'"),
        ({"optim": "sgd", "optim_b2": 0.9}, "optim='sgd' has no optim_b2; it has optim_b1"),
        ({"lr_rules": [("heat/.*", 1.0), (".*", 1.0)]}, "lr_rules: no parameter matches 'heat/.*'"),
        ({"lr_rules": [("head/.*", 1.0)]}, "lr_rules: no rule matches 'embedding/kernel'"),
        ({"decay_rules": [("head/.*", 1.0)]}, "decay_rules: no rule matches 'embedding/kernel'"),
        ({"freeze_rules": [("head/.*", True)]}, "freeze_rules: no rule matches 'embedding/kernel'"),
        ({"freeze_rules": ["head"]}, "freeze_rules: 'head' is not a pair"),
        ({"layer_decay": 0.5}, "layer_decay=0.5 needs blocks"),
    ],
    ids=str,
)
def test_bad_settings_are_found_before_any_step(changes, message):
    settings = {"optim": "adamw", "weight_decay": 0.1} | changes
    with pytest.raises(UserError, match=message):
        jax.eval_shape(build_optimizer(settings.pop("optim"), rate, **settings).init, PARAMS)

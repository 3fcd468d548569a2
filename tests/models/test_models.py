"""What the golden figures do not see: options, errors, gradients, training mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import flatten, random_images, random_params

from vit_jax import models
from vit_jax.checkpoint.stacked import stack_blocks, unstack_blocks
from vit_jax.errors import UserError
from vit_jax.families import registry
from vit_jax.layers.drop import DropPath, drop_path_rates
from vit_jax.models import from_config, get_model

TINY_VIT = {
    "patches": {"size": (8, 8)},
    "hidden_size": 32,
    "transformer": {
        "mlp_dim": 48,
        "num_heads": 4,
        "num_layers": 3,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    },
}
TINY_HYBRID = TINY_VIT | {
    "patches": {"size": (1, 1)},
    "resnet": {"num_layers": (1, 1), "width_factor": 0.5},
}
TINY_MIXER = {
    "patches": {"size": (8, 8)},
    "num_blocks": 3,
    "hidden_dim": 24,
    "tokens_mlp_dim": 12,
    "channels_mlp_dim": 40,
}
TINY = {
    "vit": TINY_VIT,
    "gap": TINY_VIT | {"classifier": "gap"},
    "hybrid": TINY_HYBRID,
    "mixer": TINY_MIXER,
}
IMAGES = random_images((2, 24, 40, 3))


def build(config: dict, **options):
    """Options go where the family keeps them: to the encoder of a Vision Transformer."""
    if "transformer" in config:
        encoder = {
            k: v
            for k, v in options.items()
            if k in ("drop_path_rate", "remat", "scan", "dropout_rate")
        }
        rest = {k: v for k, v in options.items() if k not in encoder}
        return from_config(
            {**config, "transformer": config["transformer"] | encoder, **rest}, num_classes=5
        )
    return from_config({**config, **options}, num_classes=5)


def logits_of(model, params, images=IMAGES, **kwargs):
    """Compiled: op by op, every operation would be compiled alone."""
    return jax.jit(functools.partial(model.apply, train=False, **kwargs))(
        {"params": params}, images
    )


def fresh(model):
    return jax.jit(functools.partial(model.init_with_output, train=False))(
        jax.random.key(0), IMAGES
    )


def random_weights(model, scale: float = 0.2) -> dict:
    params = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), IMAGES)[
        "params"
    ]
    return random_params({k: v.shape for k, v in flatten(params).items()}, scale)


def loss_and_grads(model, params, images=IMAGES):
    weights = np.random.default_rng(5).standard_normal((2, 5)).astype(np.float32)

    def loss(params):
        return jnp.sum(model.apply({"params": params}, images, train=True) * weights)

    return jax.jit(jax.value_and_grad(loss))(params)


@functools.cache
def plain_loss_and_grads(family):
    """Random weights of a model without options, its loss and its gradients."""
    model = build(TINY[family])
    params = random_weights(model)
    return params, *loss_and_grads(model, params)


# The true gradient of these is zero, what is left is rounding: a key's bias cannot change the
# softmax, and one number for all channels of a token leaves every LayerNorm as it was.
WITHOUT_GRADIENT = ("key/bias", "token_mixing/Dense_1/bias")


def assert_gradients_close(a, b, rel: float):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    largest = max(np.abs(value).max() for value in b.values())
    for name in a:
        zero = name.endswith(WITHOUT_GRADIENT)
        scale = largest if zero else np.abs(b[name]).max()
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=rel * scale, err_msg=name)
        assert not zero or np.abs(b[name]).max() < rel * largest, name


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize(
    "options", [{"remat": True}, {"scan": True}, {"scan": True, "remat": True}], ids=str
)
def test_remat_and_scan_change_nothing(family, options):
    other = build(TINY[family], **options)
    params, loss, grads = plain_loss_and_grads(family)
    stacked = stack_blocks(params) if "scan" in options else params
    assert jax.tree.map(jnp.shape, random_weights(other)) == jax.tree.map(jnp.shape, stacked)
    other_loss, other_grads = loss_and_grads(other, stacked)
    if "scan" in options:
        other_grads = unstack_blocks(other_grads)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    assert_gradients_close(other_grads, grads, rel=1e-5)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.promotes
def test_bfloat16_computes_narrow_and_returns_float32(family):
    plain, narrow = build(TINY[family]), build(TINY[family], dtype=jnp.bfloat16)
    params = random_weights(plain)
    expected = logits_of(plain, params)
    got, state = narrow.apply({"params": params}, IMAGES, train=False, capture_intermediates=True)
    assert got.dtype == jnp.float32
    hidden = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape[-1] != 5}
    assert hidden == {jnp.dtype(jnp.bfloat16)}
    # bfloat16 keeps 8 bits: three blocks of it stay within 6 % of the spread of the logits.
    assert np.abs(got - expected).max() < 0.06 * expected.std()
    assert np.abs(got - expected).max() > 1e-4 * expected.std()


@pytest.mark.parametrize("family", TINY)
def test_examples_do_not_see_each_other(family):
    model = build(TINY[family])
    params = random_weights(model)
    together = logits_of(model, params)
    alone = jnp.concatenate([logits_of(model, params, IMAGES[i : i + 1]) for i in (0, 1)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * together.std())


@pytest.mark.parametrize(
    ("classifier", "shape"),
    [("token", (2, 5)), ("gap", (2, 5)), ("unpooled", (2, 15, 5)), ("token_unpooled", (2, 16, 5))],
)
def test_classifiers_on_a_non_square_image(classifier, shape):
    model = from_config({**TINY_VIT, "classifier": classifier}, num_classes=5)
    logits, variables = fresh(model)
    assert logits.shape == shape
    assert ("cls" in variables["params"]) == classifier.startswith("token")


def test_without_transformer_the_map_is_pooled():
    model = from_config({**TINY_VIT, "transformer": None, "classifier": "gap"}, num_classes=0)
    features, variables = fresh(model)
    kernel = variables["params"]["embedding"]["kernel"]
    patches = IMAGES.reshape(2, 3, 8, 5, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 15, -1)
    np.testing.assert_allclose(
        features, (patches @ kernel.reshape(-1, 32)).mean(1), rtol=0, atol=1e-5
    )


def test_features_are_what_the_head_gets():
    model, bare = build(TINY_VIT), from_config(TINY_VIT, num_classes=0)
    params = random_weights(model)
    head = params.pop("head")
    features = logits_of(bare, params)
    logits = model.apply({"params": params | {"head": head}}, IMAGES, train=False)
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"][None], logits, rtol=0, atol=1e-5
    )


def test_attention_weights_can_be_looked_at():
    model = build(TINY_VIT)
    _, state = model.apply(
        {"params": random_weights(model)}, IMAGES, train=False, mutable=["intermediates"]
    )
    weights = jax.tree.leaves(state)
    assert [w.shape for w in weights] == [(2, 4, 16, 16)] * 3
    np.testing.assert_allclose(np.stack(weights).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"remat": True}], ids=str)
@pytest.mark.parametrize("family", ["vit", "mixer"])
def test_training_mode_is_random_and_evaluation_is_not(family, options):
    model = build(TINY[family], drop_path_rate=0.5, **options)
    variables = {"params": random_weights(model)}
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (model.apply(variables, IMAGES, train=True, rngs={"dropout": k}) for k in keys)
    again = model.apply(variables, IMAGES, train=True, rngs={"dropout": keys[0]})
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(a, again)
    evaluated = model.apply(variables, IMAGES, train=False)
    plain = build(TINY[family], **options).apply(variables, IMAGES, train=False)
    np.testing.assert_array_equal(evaluated, plain)


def test_drop_path_keeps_whole_examples_and_the_expectation():
    x = jnp.ones((4000, 3, 2))
    y = DropPath().apply({}, x, 0.25, train=True, rngs={"dropout": jax.random.key(1)})
    kept = y[:, 0, 0] != 0
    assert (y == jnp.where(kept, 1 / 0.75, 0.0)[:, None, None]).all()
    assert abs(kept.mean() - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert drop_path_rates(0.2, 3) == (0.0, 0.1, 0.2)
    assert drop_path_rates(0.0, 1) == (0.0,)


def test_fresh_models_start_as_the_original_does():
    """Zero head, so the first logits are its bias; zero class token; last norm of a unit zero."""
    model = from_config({**TINY_HYBRID, "head_bias_init": -3.0}, num_classes=5)
    logits, variables = fresh(model)
    params = flatten(variables["params"])
    np.testing.assert_array_equal(logits, -3.0)
    for name in ("cls", "head/kernel", "block1/unit1/gn3/scale"):
        np.testing.assert_array_equal(params[name], 0)
    assert params["Transformer/posembed_input/pos_embedding"].std() == pytest.approx(0.02, rel=0.2)


@pytest.mark.promotes
def test_gradients_against_finite_differences_in_float64():
    with jax.enable_x64(True):
        for config in TINY.values():
            model = build(config)
            params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), random_weights(model))
            images = IMAGES.astype(np.float64)
            direction = jax.tree.map(
                lambda x: jnp.asarray(np.random.default_rng(x.size).standard_normal(x.shape)),
                params,
            )

            @jax.jit
            def loss(t, model=model, params=params, images=images, direction=direction):
                moved = jax.tree.map(lambda p, d: p + t * d, params, direction)
                return model.apply({"params": moved}, images, train=False).sum()

            h = 1e-7  # small enough for no ReLU to switch in between
            numeric = (loss(h) - loss(-h)) / (2 * h)
            assert jax.grad(loss)(0.0) == pytest.approx(float(numeric), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_model("ViT-B_17"), "Did you mean 'ViT-B_16'"),
        (lambda: get_model("vit_base_patch16_225"), "Did you mean 'vit_base_patch16_224'"),
        (lambda: get_model("ViT-B_16", hiden_size=3), "Did you mean 'hidden_size'"),
        (lambda: from_config({"depth": 3}, num_classes=1), "hidden_size"),
        (lambda: build(TINY_VIT).init(jax.random.key(0), IMAGES[:, :7], train=False), "7×40.*8×8"),
        (lambda: build(TINY_VIT | {"classifier": "tokens"})
         .init(jax.random.key(0), IMAGES, train=False),
         "classifier='tokens'"),
        (lambda: build(TINY_VIT | {"transformer": {"num_layers": 1, "mlp_dim": 8, "num_heads": 5}})
         .init(jax.random.key(0), IMAGES, train=False), "num_heads=5 does not divide the width 32"),
    ],
)  # fmt: skip
def test_bad_input_names_what_is_wrong(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_timm_names_are_the_same_models_with_timms_preprocessing():
    official, timm = registry.resolve("ViT-B_16"), registry.resolve("vit_base_patch16_384")
    assert timm.config == official.config
    assert (timm.preprocess.size, timm.preprocess.crop, timm.preprocess.method) == (
        384,
        1.0,
        "bicubic",
    )
    assert (official.preprocess.resize, official.preprocess.method) == ("squash", "bilinear")
    assert get_model("mixer_b16_224") == get_model("Mixer-B_16")


def test_overrides_merge_into_mappings():
    model = get_model("ViT-Ti_16", num_classes=3, transformer={"scan": True}, dtype=jnp.bfloat16)
    assert model.transformer["scan"]
    assert model.transformer["num_layers"] == 12
    assert model.dtype == jnp.bfloat16
    with pytest.raises(AttributeError, match="no attribute 'Resnet'"):
        models.Resnet  # noqa: B018

"""Token labelling: figures of the official code, formulas in NumPy, and the training step."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh
from vit_jax.errors import UserError
from vit_jax.families.registry import resolve, shrunk
from vit_jax.layers.head import show_heads
from vit_jax.train import engine as engine_lib
from vit_jax.train import token_labels
from vit_jax.train.mixing import Mixing, random_box
from vit_jax.train.state import init_state
from vit_jax.train.step import make_train_step
from vit_jax.train.token_labels import TokenLabels, roi_align, token_label_loss

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden/zoo/token_labels.npz"))
RNG = np.random.default_rng(0)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def recorded(name):
    return jnp.asarray(GOLDEN[name], jnp.float64)


# The released code computes 0.9 and 0.5 in float32, which alone moves its loss by 1e-8.
@pytest.mark.parametrize(("ground_truth", "bar"), [(False, 1e-9), (True, 1e-8)])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dense", [0.5, 1.0])
def test_losses_of_the_official_code(double, dense, mixed, ground_truth, bar):
    target = recorded("tl_target")
    how = {"dense_weight": dense, "mix": jnp.arange(15).reshape(3, 5) < 4 if mixed else None}
    got = token_label_loss(
        recorded("tl_cls"),
        recorded("tl_aux"),
        target[..., 0],
        target[..., 1],
        jnp.moveaxis(target[..., 2:], 2, 1),
        ground_truth=ground_truth,
        **how,
    )
    assert got.shape == (4,)
    name = f"value:tokenlabel_{'box' if mixed else 'nobox'}_dense{dense}_gt{ground_truth}"
    np.testing.assert_allclose(got.mean(), GOLDEN[name][0], rtol=bar)


@pytest.mark.parametrize("mixed", [False, True])
def test_without_maps_the_label_is_that_of_every_patch(double, mixed):
    label, mix = recorded("tl_target2d"), jnp.arange(15).reshape(3, 5) < 4 if mixed else None
    got = token_label_loss(
        recorded("tl_cls"), recorded("tl_aux"), label, mix=mix, dense_weight=0.5, ground_truth=True
    )
    name = f"value:tokenlabel_{'box' if mixed else 'nobox'}_dense0.5_target2d"
    np.testing.assert_allclose(got.mean(), GOLDEN[name][0], rtol=1e-9)
    alone = token_label_loss(recorded("tl_cls"), None, label)
    expected = GOLDEN["value:tokenlabel_soft_ce_only_cls"][0]
    np.testing.assert_allclose(alone.mean(), expected, rtol=1e-9)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_of_crops_equal_the_official_codes(double, size, smoothing):
    labelling = TokenLabels((size, size), smoothing=smoothing)
    made = jax.jit(labelling.targets)(
        {
            "label": jax.nn.one_hot(GOLDEN["map_gt"], 10),
            "label_map": recorded("map_topk")[:, :2],
            "label_window": recorded("map_coords_x0_y0_w_h"),
        }
    )
    assert made.keys() == {"label", "label_image", "label_tokens"}
    tokens = np.moveaxis(np.asarray(made["label_tokens"]), 1, 2)
    labels = [made["label"][..., None], made["label_image"][..., None]]
    labels = np.concatenate(labels if size == 1 else [*labels, tokens], axis=-1)
    if size == 1:
        np.testing.assert_array_equal(made["label_image"][..., None], tokens)
    mixed = 0.7 * labels + 0.3 * labels[::-1]
    expected = GOLDEN[f"map_target_size{size}_smooth{smoothing}_lam0.7"]  # in float32
    np.testing.assert_allclose(mixed, expected, atol=4e-7)


def roi_by_hand(image, window, grid):
    """One map [H, W] by torchvision's formula, a loop for each of its sums."""
    (height, width), (rows, columns), (left, top, w, h) = image.shape, grid, window
    x0, y0 = left * width - 0.5, top * height - 0.5
    sides = max(h * height, 1), max(w * width, 1)
    counts = math.ceil(sides[0] / rows), math.ceil(sides[1] / columns)

    def at(y, x):
        if not (-1 <= y <= height and -1 <= x <= width):
            return 0.0
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        i, j = math.floor(y), math.floor(x)
        below, right = min(i + 1, height - 1), min(j + 1, width - 1)
        upper = image[i, j] * (1 - (x - j)) + image[i, right] * (x - j)
        lower = image[below, j] * (1 - (x - j)) + image[below, right] * (x - j)
        return upper * (1 - (y - i)) + lower * (y - i)

    out = np.zeros(grid)
    for r in range(rows):
        for c in range(columns):
            for i in range(counts[0]):
                for j in range(counts[1]):
                    y = y0 + (r + (i + 0.5) / counts[0]) * sides[0] / rows
                    x = x0 + (c + (j + 0.5) / counts[1]) * sides[1] / columns
                    out[r, c] += at(y, x) / math.prod(counts)
    return out


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (9, 9)])
def test_roi_align_is_torchvisions_formula(double, grid):
    windows = np.array(
        [
            [0, 0, 1, 1],
            [0.13, 0.31, 0.57, 0.44],
            [0.9, 0.95, 0.1, 0.05],  # less than a pixel, at the border
            [0.5, 0.25, 0.001, 0.6],
            [0.97, 0.98, 0.01, 0.01],  # of the pixel that it counts as, a part is outside
        ]
    )
    maps = RNG.standard_normal((len(windows), 7, 5, 2))
    got = jax.jit(roi_align, static_argnums=2)(jnp.asarray(maps), jnp.asarray(windows), grid)
    for i, window in enumerate(windows):
        for k in range(2):
            expected = roi_by_hand(maps[i, ..., k], window, grid)
            np.testing.assert_allclose(got[i, ..., k], expected, rtol=1e-12, atol=1e-12)


def test_by_hand():
    # Two patches, two classes; every softmax is (3/4, 1/4) or (1/2, 1/2).
    logits = jnp.array([[math.log(3), 0.0], [0.0, 0.0]])
    tokens = jnp.array([[[math.log(3), 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    label = jnp.eye(2)
    third, quarter, half = math.log(4 / 3), math.log(4), math.log(2)
    got = token_label_loss(logits, tokens, label, dense_weight=0.5)
    np.testing.assert_allclose(got, [third + 0.25 * (third + half), 1.5 * half], rtol=1e-6)
    # Half of the patches are exchanged, so that half of the label is the other image's.
    mix = jnp.array([[True, False]])
    got = token_label_loss(logits, tokens, label, mix=mix, dense_weight=0)
    np.testing.assert_allclose(got, [(third + quarter) / 2, half], rtol=1e-6)
    # A map that agrees has a half of the label, one that does not has nine tenths.
    agrees, differs = jnp.array([[0.6, 0.4], [0.6, 0.4]]), jnp.array([[0.8, 0.2], [0.6, 0.4]])
    for image_label, share in ((agrees, 0.8), (differs, 0.9)):
        got = token_label_loss(logits, None, label, image_label, ground_truth=True)
        np.testing.assert_allclose(got[0], share * third + (1 - share) * quarter, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_finite_at_saturation(dtype):
    logits = jnp.array([[3e4, -3e4, 0], [-3e4, 0, 3e4]], dtype)
    tokens = jnp.stack([logits, -logits], axis=1)
    label = jnp.eye(3)[:2]

    def loss(logits, tokens):
        how = {"mix": jnp.array([[True, False]]), "ground_truth": True}
        return token_label_loss(logits, tokens, label, label[::-1], tokens * 0 + 1 / 3, **how).sum()

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(logits, tokens)
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert all(np.isfinite(x.astype(jnp.float32)).all() for x in grads)


class ThreeQuarters(Mixing):
    """Mixup that always keeps as much of an image."""

    def weights(self, key, n, height, width):
        return jnp.full((1, 1, 1), 0.75), jnp.full(1, 0.75)


def test_mixup_mixes_the_labels_of_patches_too():
    n = 4
    batch = {
        "image": jnp.arange(n, dtype=jnp.float32).reshape(n, 1, 1, 1),
        "label": jnp.eye(n),
        "label_image": 2 * jnp.eye(n),
        "label_tokens": jnp.stack([jnp.eye(n), 3 * jnp.eye(n)], axis=1),
    }
    mixed = jax.jit(ThreeQuarters(mixup_alpha=0.8))(jax.random.key(0), batch)
    np.testing.assert_allclose(mixed["label"][1], [0.25, 0.75, 0, 0])
    np.testing.assert_allclose(mixed["label_image"], 2 * mixed["label"], rtol=1e-6)
    np.testing.assert_allclose(mixed["label_tokens"][:, 1], 3 * mixed["label"], rtol=1e-6)


def test_the_box_is_mixtokens():
    """λ ~ Beta(α, α); ⌊√(1 - λ) side⌋ of each side about a uniform centre, clipped."""
    rows, columns, sizes = 7, 5, set()

    @jax.jit
    def draw(key):
        share_key, y_key, x_key = jax.random.split(key, 3)
        share = jax.random.beta(share_key, 1.0, 1.0, (1,))[0]
        y, x = (jax.random.randint(k, (1,), 0, n)[0] for k, n in ((y_key, rows), (x_key, columns)))
        return share, y, x, random_box(key, 1.0, 1, rows, columns)[0]

    for seed in range(30):
        share, *centre, got = draw(jax.random.key(seed))
        expected, spans = np.zeros((rows, columns), bool), []
        for side, at in zip((rows, columns), map(int, centre), strict=True):
            half = int(side * math.sqrt(1 - float(share))) // 2
            spans.append(slice(max(at - half, 0), min(at + half, side)))
        expected[tuple(spans)] = True
        np.testing.assert_array_equal(got, expected)
        sizes.add(int(expected.sum()))
    assert len(sizes) > 8


class Dense(nn.Module):
    """Two heads whose logits tell the images, and the exchanged patches from the others."""

    @nn.compact
    def __call__(self, images, *, train, mix=None):
        scale = self.param("scale", nn.initializers.ones, (1, 1))
        x = images.mean((1, 2, 3))[:, None] * scale * jnp.arange(3.0)[None]
        marks = jnp.zeros((1, 24)) if mix is None else mix.reshape(1, 24) * 1.0
        tokens = x[:, None] * (1 + marks[..., None] * jnp.arange(3.0).reshape(1, 1, 3))
        show_heads(self, x, tokens)
        return x


def test_the_step_draws_the_patches_from_the_runs_key_and_the_step():
    model, labelling, accum_steps = Dense(), TokenLabels((4, 6)), 2

    def exchange(key):
        return jax.random.bernoulli(key, 0.3, (4, 6))

    @jax.jit
    def by_hand(params, step, batch):
        """The loss of both parts of the batch, each with patches of its own."""
        _, dropout = jax.random.split(jax.random.fold_in(jax.random.key(5), step))
        losses = []
        for part in range(accum_steps):
            mix = exchange(jax.random.split(jax.random.fold_in(dropout, part))[1])
            rows = {name: x[part::accum_steps] for name, x in batch.items()}
            _, shown = model.apply(
                {"params": params}, rows["image"], train=True, mix=mix, mutable=["heads"]
            )
            losses.append(token_label_loss(*shown["heads"]["all"][0], rows["label"], mix=mix))
        return jnp.stack(losses).mean()

    step = jax.jit(
        make_train_step(
            model,
            optax.sgd(0.0),
            inputs=labelling.targets,
            objective=labelling.objective,
            exchange=exchange,
            accum_steps=accum_steps,
        )
    )
    image = jnp.ones((4, 2, 2, 3)) * jnp.arange(4.0).reshape(4, 1, 1, 1)
    batch = {"image": image, "label": jnp.eye(3)[jnp.array([0, 1, 2, 0])]}
    state = init_state(model, optax.sgd(0.0), jax.random.key(0), image_size=2, channels=3)
    found = []
    for _ in range(4):
        expected = by_hand(state.params, state.step, batch)
        again = step(state, batch, jax.random.key(5))[1]["loss"]
        state, scalars = step(state, batch, jax.random.key(5))
        assert scalars["loss"] == again
        np.testing.assert_allclose(again, expected, rtol=1e-6)
        found.append(float(scalars["loss"]))
    assert len(set(found)) > 2


def config_of(name, **changes):
    config = common.get_config()
    config.model = shrunk(resolve(name).config.to_dict())
    config.pp.crop = (48, 32)
    config.token_labels.on = True
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return common.with_defaults(config)


def test_the_engine_gives_the_loss_all_that_it_needs(monkeypatch):
    """Traced only: the recipe of LV-ViT is run as a whole."""
    shapes = {}

    def spy(*args, **kwargs):
        names = ("logits", "token_logits", "label", "image_label", "token_labels")
        arrays = zip((*names, "mix"), (*args, kwargs["mix"]), strict=True)
        shapes.update({name: x.shape for name, x in arrays})
        return token_label_loss(*args, **kwargs)

    monkeypatch.setattr(token_labels, "token_label_loss", spy)
    config = config_of("refiner_vit_s", batch=8, accum_steps=2, total_steps=3)
    config.unlock().token_labels.mixtoken_alpha = 1.0
    engine = engine_lib.build(config, make_mesh(config.mesh), num_classes=5)
    batch = {
        "image": jax.ShapeDtypeStruct((8, 48, 32, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8,), jnp.int32),
        "label_map": jax.ShapeDtypeStruct((8, 2, 3, 6, 7), jnp.float32),
        "label_window": jax.ShapeDtypeStruct((8, 4), jnp.float32),
    }
    key = jax.eval_shape(jax.random.key, 0)
    jax.eval_shape(engine.train_step, jax.eval_shape(engine.init, key), batch, key)
    one, each = (4, 5), (4, 6, 5)
    assert shapes == {
        **{"logits": one, "token_logits": each, "label": one, "image_label": one},
        **{"token_labels": each, "mix": (3, 2)},
    }


@pytest.mark.parametrize("name", ["lvvit_s", "refiner_vit_s"])
def test_what_a_config_asks_for(name):
    made = token_labels.of_config(
        config_of(name, label_smoothing=0.1, token_labels__mixtoken_alpha=1.0)
    )
    assert made == TokenLabels((3, 2), mixtoken_alpha=1.0, smoothing=0.1)
    assert token_labels.of_config(config_of(name, token_labels__on=False)) is None


def test_a_model_of_one_head_learns_the_maps_label_alone():
    made = token_labels.of_config(config_of("simple_vit_s_16", token_labels__dense_weight=0.0))
    assert made == TokenLabels((1, 1), dense_weight=0.0, dense=False)
    logits, label = jnp.zeros((2, 3)), jnp.eye(3)[:2]
    np.testing.assert_allclose(made.objective((logits,), {"label": label}), math.log(3), rtol=1e-6)
    with pytest.raises(UserError, match="this one has 2"):
        made.objective((logits, logits), {"label": label})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("simple_vit_s_16", {}, "no head for the patches, as those of lvvit, refiner have"),
        (
            "simple_vit_s_16",
            {"token_labels__dense_weight": 0.0, "token_labels__mixtoken_alpha": 1.0},
            "no head for the patches",
        ),
        ("lvvit_s", {"loss": "sigmoid"}, "is for loss='softmax', got 'sigmoid'"),
        ("lvvit_s", {"distill__kind": "hard"}, "two ways to learn"),
        ("lvvit_s", {"objective": "masked_patches"}, "two ways to learn; choose one"),
        ("lvvit_s", {"token_labels__ground_truth": True}, "maps is not set"),
        (
            "lvvit_s",
            {"token_labels__class_weight": 0.0, "token_labels__dense_weight": 0.0},
            "both 0",
        ),
        (
            "lvvit_s",
            {"token_labels__on": False, "token_labels__maps": "somewhere"},
            "which nothing uses: set --config.token_labels.on=True",
        ),
    ],
)
def test_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        token_labels.of_config(config_of(name, **changes))

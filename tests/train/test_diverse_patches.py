"""The losses against over-smoothing: recorded figures, NumPy, tiny cases by hand, and a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from ml_collections import ConfigDict
from recipes import GOLDEN

from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.evaluate.similarity import mean_similarity
from vit_jax.families.registry import resolve, shrunk
from vit_jax.models import from_config
from vit_jax.train import objectives
from vit_jax.train.diverse_patches import (
    DiversePatches,
    contrastive_loss,
    draw_box,
    mixing_loss,
    released_class_loss,
    released_contrastive_loss,
    released_mixing_loss,
)

FIGURES = np.load(GOLDEN / "zoo" / "diverse_losses.npz")
GRID = (3, 3)


def in_float64(loss, *arrays, **fields) -> np.ndarray:
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in arrays]
        return np.asarray(jax.jit(functools.partial(loss, **fields))(*wide))


# --- the paper's ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "loss", "inputs"),
    [
        ("cos", mean_similarity, ("div_h",)),
        ("contrastive", contrastive_loss, ("div_h0", "div_h")),
        ("mixing", mixing_loss, ("div_patch_logits", "div_patch_labels")),
    ],
)
def test_the_papers_losses(name, loss, inputs):
    arrays = [FIGURES[key] for key in inputs]
    if name == "mixing":
        arrays[1] = np.eye(10)[arrays[1]]
    found = in_float64(loss, *arrays).mean()
    np.testing.assert_allclose(found, FIGURES[f"value:diverse_{name}"].item(), rtol=1e-9)


def test_similarity_by_hand():
    """The same direction or its opposite is 1, orthogonal ones are 0, and zeros have none."""
    a, b, zero = (1.0, 0.0), (0.0, 2.0), (0.0, 0.0)
    x = jnp.array([[a, a, a], [a, (-3.0, 0.0), b], [a, b, zero], [zero, zero, zero]])
    np.testing.assert_allclose(mean_similarity(x), [1, 1 / 3, 0, 0], atol=1e-7)
    gradient = jax.grad(lambda x: mean_similarity(x).sum())(x)
    assert np.isfinite(gradient).all()


def test_contrast_by_hand():
    """Two patches: the other one is the mean of the others."""
    early, late = jnp.array([[[1.0], [2.0]]]), jnp.array([[[3.0], [5.0]]])
    wanted = (np.log1p(np.exp(5 - 3)) + np.log1p(np.exp(2 * 3 - 2 * 5))) / 2
    np.testing.assert_allclose(contrastive_loss(early, late), [wanted], rtol=1e-6)


# --- the released code's -------------------------------------------------------------------------


def test_the_released_contrast_by_hand():
    """Every patch and its neighbours are 1: an inner one has 48 of these, a corner 15."""
    early, late = np.ones((1, 81, 1)), np.ones((1, 81, 1))
    found = in_float64(released_contrastive_loss, early, late, grid=(9, 9))
    neighbours = [
        sum(0 <= i + k < 9 for k in range(-3, 4)) * sum(0 <= j + k < 9 for k in range(-3, 4)) - 1
        for i in range(9)
        for j in range(9)
    ]
    own = [np.e / (2 * np.e + np.exp(n / 48)) for n in neighbours]
    assert (min(neighbours), max(neighbours)) == (15, 48)
    np.testing.assert_allclose(found, [-np.log(np.array(own) + 1e-8).mean()], rtol=1e-12)


def test_the_released_mixing_by_hand():
    logits = np.log([[[0.5, 0.5], [0.9, 0.1]]])
    labels = np.array([[[1.0, 0.0], [0.2, 0.8]]])
    first = -np.log(0.5 + 1e-8)
    second = 0.2 * np.log(0.2 / (0.9 + 1e-8)) + 0.8 * np.log(0.8 / (0.1 + 1e-8))
    found = in_float64(released_mixing_loss, logits, labels, np.array([0.25, 0.75]))
    np.testing.assert_allclose(found, [0.25 * first + 0.75 * second], rtol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e4])
@pytest.mark.parametrize("form", ["released", "paper"])
def test_gradients_are_finite_at_saturation(form, size):
    rng = np.random.default_rng(0)
    this = DiversePatches((4, 4), form=form, cosine=1.0)
    labels = np.eye(3, dtype=np.float32)[[0, 1]]
    fixed = {
        "image": jnp.zeros((2, 12, 12, 3)),
        "label": labels,
        "region_labels": np.stack([labels, labels[::-1]], axis=1),
        "shares": np.float32([0.4, 0.6]),
    }
    shapes = {"cls": (2, 3), "regions": (2, 2, 3), "embedded": (2, 9, 5), "final": (2, 9, 5)}
    free = {k: (size * rng.normal(size=s)).astype(np.float32) for k, s in shapes.items()}

    def total(free):
        return this.loss((free.pop("cls"), free.pop("regions")), {**fixed, **free}).sum()

    value, gradient = jax.jit(jax.value_and_grad(lambda x: total(dict(x))))(free)
    assert np.isfinite(value)
    for x in jax.tree.leaves(gradient):
        assert np.isfinite(x).all()


def test_the_class_loss_is_bounded():
    labels = np.array([[0.0, 1.0]])
    found = in_float64(released_class_loss, np.array([[100.0, -100.0]]), labels)
    np.testing.assert_allclose(found, [-np.log(1e-8)], rtol=1e-9)


# --- what is drawn -------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(9, 9), (4, 14)])
def test_boxes(grid):
    draw = jax.jit(jax.vmap(functools.partial(draw_box, grid=grid)))
    boxes = np.asarray(draw(jax.random.split(jax.random.key(0), 500)))
    for box in boxes:
        rows, columns = box.any(axis=1), box.any(axis=0)
        np.testing.assert_array_equal(box, np.outer(rows, columns))
        for side in (rows, columns):  # one piece
            assert np.count_nonzero(np.diff(np.pad(side.astype(int), 1))) in (0, 2)
    shares = boxes.mean(axis=(1, 2))
    assert shares.min() < 0.05
    assert shares.max() > 0.7
    assert 0.3 < shares.mean() < 0.5


@pytest.mark.parametrize("form", ["released", "paper"])
def test_images_are_mixed_as_their_labels(form):
    """Images of one number each, whose labels tell which: every patch can be counted."""
    this = DiversePatches((2, 2), form=form, label_smoothing=0.1)
    numbers = np.arange(3.0, dtype=np.float32)
    batch = {"image": np.tile(numbers[:, None, None, None], (1, 9, 6, 1)), "label": np.eye(3)}
    batch = {name: jnp.asarray(x, jnp.float32) for name, x in batch.items()}
    mixed, asked = jax.jit(this.draw)(jax.random.key(5), batch)
    patches = np.asarray(mixed["image"])[:, :8:2, ::2, 0]
    np.testing.assert_array_equal(np.asarray(mixed["image"])[:, 8], mixed["image"][:, 7])
    smooth = 0.9 * np.eye(3) + 0.1 / 3
    box = patches == numbers[:, None, None]
    assert 0 < box[0].mean() < 1
    for i in range(3):
        share = box[i].mean()
        wanted = share * smooth[i] + (1 - share) * smooth[i - 1]
        np.testing.assert_allclose(mixed["label"][i], wanted, rtol=1e-5)
        by_region = smooth[[i, i - 1]] if form == "released" else smooth[patches[i].astype(int)]
        np.testing.assert_allclose(mixed["region_labels"][i], by_region.reshape(-1, 3), rtol=1e-5)
    if form == "released":
        np.testing.assert_array_equal(asked["regions"], [box[0], ~box[0]])
        np.testing.assert_allclose(mixed["shares"], [box[0].mean(), 1 - box[0].mean()], rtol=1e-5)
    else:
        np.testing.assert_array_equal(asked["regions"] > 0, np.eye(12).reshape(12, 4, 3) > 0)


# --- in a run ------------------------------------------------------------------------------------


def config_of(name="diversepatch_deit_tiny_patch16_224", **changes):
    config = tiny_run.config("nowhere", objective="diverse_patches", **changes)
    config.model = ConfigDict(shrunk(resolve(name).config.to_dict()))
    return common.with_defaults(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diversity__form": "both"}, "diversity.form 'both'.*released, paper"),
        ({"loss": "sigmoid"}, "losses are of softmax"),
        ({"distill__kind": "hard"}, "only the objective 'classes'"),
        ({"name": "ViT-Ti_16"}, "VisionTransformer.* or set config.diversity.mixing=0"),
        ({"name": "pit_ti_224", "diversity__mixing": 0.0}, "does not show its patches"),
    ],
)
def test_refused(changes, message):
    config = config_of(**{"pp__crop": 32, **changes})
    with pytest.raises(UserError, match=message):
        objectives.get_task(config, 2).check(from_config(config.model, num_classes=2))


@pytest.mark.parametrize("name", ["ViT-Ti_16", "deit_tiny_distilled_patch16_224"])
def test_models_without_a_head_of_patches_can_be_kept_apart(name):
    config = config_of(name, pp__crop=32, diversity__mixing=0.0, diversity__cosine=1.0)
    objectives.get_task(config, 2).check(from_config(config.model, num_classes=2))

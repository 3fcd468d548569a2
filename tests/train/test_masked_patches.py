"""Masked patch prediction: recorded figures, corruption by hand, and a run that is fine-tuned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from ml_collections import ConfigDict
from recipes import GOLDEN

from vit_jax import checkpoint, inference, models
from vit_jax.configs import common, masked_patches
from vit_jax.configs import models as model_configs
from vit_jax.errors import UserError
from vit_jax.layers.masking import Corruption, corrupt
from vit_jax.train import loop, metrics, objectives
from vit_jax.train.masked_patches import (
    MaskedPatches,
    cell_colours,
    colour_classes,
    draw_corruption,
    kinds,
    patch_pixels,
)
from vit_jax.train.pretrained import find_pretrained

FIGURES = np.load(GOLDEN / "zoo" / "mpp.npz")
IMAGES = FIGURES["images"].transpose(0, 2, 3, 1)
PATCH = (16, 16)
HALF = (0.5, 0.5, 0.5)
NORMALISED = (IMAGES - 0.5) / 0.5


def task(**fields) -> MaskedPatches:
    return MaskedPatches(**{"patch": PATCH, "mean": HALF, "std": HALF, **fields})


# --- recorded figures ----------------------------------------------------------------------------


def test_targets():
    with jax.enable_x64(True):
        pixels = patch_pixels(jnp.asarray(IMAGES), PATCH)
        one, many = cell_colours(pixels, 1), cell_colours(pixels, 4)
        np.testing.assert_allclose(one[:, :, 0], FIGURES["mean_color"], rtol=1e-12)
        for packing, name in (("rgb", "class_rgb_msb_first"), ("bgr", "class_rgb_lsb_first")):
            np.testing.assert_array_equal(colour_classes(one, packing)[..., 0], FIGURES[name])
        np.testing.assert_array_equal(colour_classes(many), FIGURES["class_4x4_msb_first"])


def test_levels_of_a_channel():
    """The last one holds 1, and rounding may take a mean beyond both ends."""
    colours = jnp.array([[-1e-7], [0.0], [0.1249], [0.125], [0.874], [0.875], [1.0], [1.0000001]])
    np.testing.assert_array_equal(colour_classes(colours), [0, 0, 0, 1, 6, 7, 7, 7])


def test_corruption():
    """The recorded one, and the rule in NumPy, patch by patch.

    There a donor is any patch of the batch: it is one image of all of them.
    """
    kind = kinds(jnp.asarray(FIGURES["u_select"] < 0.5), jnp.asarray(FIGURES["u_kind"]), 0.8, 0.1)
    np.testing.assert_array_equal(kind, FIGURES["kind"])
    kind, donor = (np.ravel(x)[None] for x in (kind, FIGURES["random_index"]))
    x, token = FIGURES["emb"].reshape(1, -1, 8), FIGURES["mask_token"]
    with jax.enable_x64(True):
        got = np.asarray(jax.jit(corrupt)(x, token, Corruption(kind, donor)))
    np.testing.assert_array_equal(got.reshape(FIGURES["emb"].shape), FIGURES["corrupted"])
    for t in range(kind.size):
        by_hand = [x[0, t], token, x[0, donor[0, t]], x[0, t]][kind[0, t]]
        np.testing.assert_array_equal(got[0, t], by_hand)


def test_loss():
    with jax.enable_x64(True):
        logits = jnp.asarray(FIGURES["logits"], jnp.float64)
        batch = {
            "image": jnp.asarray(NORMALISED),
            "selected": jnp.asarray(FIGURES["corrupt_mask"]),
        }
        wanted = FIGURES["ce_mean_over_corrupted"].item()
        np.testing.assert_allclose(task().loss((logits,), batch).mean(), wanted, rtol=1e-9)
        # A class token stands before the patches.
        with_token = jnp.pad(logits, ((0, 0), (1, 0), (0, 0)), constant_values=9)
        np.testing.assert_allclose(task().loss((with_token,), batch).mean(), wanted, rtol=1e-9)
        other = task(packing="bgr").loss((logits,), batch).mean()
        assert abs(other / wanted - 1) > 1e-3
        # The other packing is an order of the logits.
        order = np.arange(512).reshape(8, 8, 8).transpose(2, 1, 0).ravel()
        same = task(packing="bgr").loss((logits[..., order],), batch).mean()
        np.testing.assert_allclose(same, wanted, rtol=1e-9)


@pytest.mark.parametrize("target", ["mean_colour", "mean_colour_4x4", "pixels"])
def test_loss_by_hand(target):
    """What knows every answer has no loss, and each wrong answer costs what it should."""
    this = task(target=target)
    n, t = 4, 6
    x = np.asarray(patch_pixels(jnp.asarray(IMAGES), PATCH))
    selected = np.zeros((n, t), bool)
    selected[:, :2] = True
    if target == "pixels":
        right = x.reshape(n, t, -1)
        wrong, cost = right + 0.5, 0.25
    else:
        classes = FIGURES["class_4x4_msb_first"]
        if target == "mean_colour":
            classes = FIGURES["class_rgb_msb_first"][..., None]
        right = np.where(np.arange(512) == classes[..., None], 1e4, 0.0)
        wrong, cost = -right, 1e4 + np.log(511)
        right, wrong = (y.reshape(n, t, -1) for y in (right, wrong))
    assert right.shape[-1] == this.outputs
    batch = {"image": jnp.asarray(NORMALISED, jnp.float32), "selected": jnp.asarray(selected)}
    loss = jax.jit(lambda y: this.loss((y,), batch))
    gradient = jax.jit(jax.grad(lambda y: this.loss((y,), batch).sum()))
    for y, wanted in ((right, 0.0), (wrong, cost)):
        y = jnp.asarray(y, jnp.float32)
        np.testing.assert_allclose(loss(y), wanted, rtol=1e-5, atol=1e-9)
        found = gradient(y)
        assert np.isfinite(found).all()
        assert not found[:, 2:].any()  # Nobody asked about these.


@pytest.mark.parametrize("target", ["mean_colour", "mean_colour_4x4", "pixels"])
def test_judge(target):
    """Images are corrupted alike, whatever the batch; padding counts for nothing."""
    this = task(target=target)
    x = np.asarray(patch_pixels(jnp.asarray(IMAGES, jnp.float32), PATCH))
    if target == "pixels":
        answers = x.reshape(4, 6, -1)
    else:
        cells = FIGURES["class_rgb_msb_first"][..., None]
        cells = FIGURES["class_4x4_msb_first"] if "4x4" in target else cells
        answers = np.where(np.arange(512) == cells[..., None], 9.0, 0.0).reshape(4, 6, -1)
    answers = np.array(answers, np.float32)
    answers[1] = answers[1, ::-1] - 1  # these are wrong: other patches, and pixels that are darker

    @jax.jit
    def judge(image, answers, mask):
        def forward(images, corruption):
            del images
            # Only what is selected may be asked about.
            return jnp.where(corruption.selected[..., None], answers, 1e3)

        return this.judge(forward, {"image": image, "mask": mask})

    image, mask = np.float32(NORMALISED), np.float32([1, 1, 1, 0])
    figures, losses = judge(image, answers, mask)
    cells = 16 if "4x4" in target else 1
    assert figures["counted"] == 3 * 3 * cells  # half of 6 patches, of 3 images
    assert 2 * 3 * cells <= figures["correct"] < 3 * 3 * cells
    assert losses[1] > 10 * losses[0]
    _, alone = judge(image[:2], answers[:2], mask[:2])
    np.testing.assert_allclose(alone, losses[:2], rtol=1e-5)


def test_draws():
    """The shares are the paper's; every image has as many; a donor is another patch."""
    kind, donor = draw_corruption(jax.random.key(0), 400, 50, rate=0.5, masked=0.8, swapped=0.1)
    np.testing.assert_array_equal((np.asarray(kind) != 0).sum(axis=1), 25)
    shares = np.bincount(np.ravel(kind), minlength=4) / kind.size
    np.testing.assert_allclose(shares, [0.5, 0.4, 0.05, 0.05], atol=0.01)
    assert (np.asarray(donor) != np.arange(50)).all()
    assert len(np.unique(donor)) == 50
    assert len({row.tobytes() for row in np.asarray(kind)}) == 400
    few = draw_corruption(jax.random.key(0), 3, 1, rate=0.1, masked=1.0, swapped=0.0)
    np.testing.assert_array_equal(few.kind, np.ones((3, 1)))


# --- refusals ------------------------------------------------------------------------------------


def config_of(**changes) -> ConfigDict:
    config = tiny_run.config("nowhere", **{"objective": "masked_patches", **changes})
    config.model = masked_patches.as_predictor(model_configs.get_testing_config())
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking__target": "mean"}, "masking.target 'mean'.*mean_colour"),
        ({"masking__packing": "grb"}, "rgb, bgr"),
        ({"masking__masked": 0.95}, "at most 1 together"),
        ({"distill__kind": "hard"}, "only the objective 'classes'"),
        ({"objective": "masked"}, "masked_patches"),
        ({"pp__channels": 5, "pp__mean": (0.5,) * 5, "pp__std": (0.5,) * 5}, "at most 4 channels"),
    ],
)
def test_settings_are_refused(changes, message):
    config = config_of(**{"pp__channels": 3, **changes})
    with pytest.raises(UserError, match=message):
        objectives.get_task(common.with_defaults(config), 2)


def test_patches_without_cells_are_refused():
    with pytest.raises(UserError, match="multiples of 4 pixels; this model's are 14×14"):
        task(patch=(14, 14), target="mean_colour_4x4")


@pytest.mark.parametrize("field", [{"mask_token": False}, {"classifier": "token"}])
def test_models_are_refused(field):
    config = common.with_defaults(config_of())
    model = models.from_config({**config.model, **field}, num_classes=512)
    with pytest.raises(UserError, match="mask_token=True and config"):
        objectives.get_task(config, 2).check(model)
    if "mask_token" in field:
        corruption = draw_corruption(jax.random.key(0), 1, 4, rate=0.5, masked=1.0, swapped=0.0)
        forward = functools.partial(model.init, train=False, corruption=corruption)
        with pytest.raises(UserError, match="without a mask token"):
            jax.eval_shape(forward, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_learns_is_evaluated_and_fine_tuned(tmp_path):
    data = tiny_run.write_images(tmp_path / "data")
    config = config_of(total_steps=8, eval_every=8, base_lr=0.05, optim="adamw", pp__crop=32)
    config.dataset = str(data)
    workdir = tmp_path / "masked"
    loop.train_and_evaluate(config, str(workdir))
    lines = metrics.read(workdir)
    evaluated = [line for line in lines if "loss_test" in line]
    # Before it has learned anything every class is as likely: log 512 = 6.24.
    assert lines[0]["train_loss"] == pytest.approx(np.log(512), rel=0.02)
    assert evaluated[-1]["loss_test"] < 4
    assert 0 < evaluated[-1]["accuracy_test"] <= 1
    assert evaluated[-1]["examples_test"] == 10
    assert "accuracy_top5_test" not in evaluated[-1]

    pretrained = inference.load_weights(workdir).variables["params"]
    assert pretrained["head"]["kernel"].shape[-1] == 512
    assert pretrained["head_mask_token"].any()

    tuned = tiny_run.config(data, pretrained=str(workdir), pp__crop=32)
    forward = functools.partial(models.from_config(tuned.model, num_classes=2).init, train=False)
    fresh = jax.eval_shape(forward, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    params = checkpoint.load_pretrained(
        pretrained_path=find_pretrained(common.with_defaults(tuned)),
        init_params=jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), fresh),
        model_config=tuned.model,
    )
    assert params.keys() == fresh.keys()
    assert (params["head"]["kernel"] == 7).all()
    for name in ("cls", "embedding", "Transformer"):
        jax.tree.map(np.testing.assert_array_equal, params[name], pretrained[name])

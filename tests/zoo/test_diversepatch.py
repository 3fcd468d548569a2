"""What only DeiT with diverse patches has, beside its figures in test_official.py."""

import jax
import numpy as np
import pytest
import scipy.special
from zoo_cases import config_of
from zoo_figures import official

from vit_jax.layers.head import HEADS, heads_of
from vit_jax.layers.tokens import PATCHES
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.train.diverse_patches import (
    released_class_loss,
    released_contrastive_loss,
    released_mixing_loss,
)

TALK, NO_TALK, SMALL_WEIGHTS, LARGER_WEIGHTS = (
    "diversepatch_tiny_talk",
    "diversepatch_tiny_notalk",
    "diversepatch_tiny_talk_s002",
    "diversepatch_tiny_talk_s005",
)
TINY = "diversepatch_deit_tiny_patch16_224"


def test_what_evaluation_reports():
    """The official code reports the sum of both heads' probabilities, too."""
    this = official(TALK)
    cls, of_patches = (this.computed[f"logits_{head}_f64"] for head in ("cls", "patch"))
    wanted = this.golden.figures
    log_probabilities = scipy.special.log_softmax(cls, axis=-1)
    assert relative_error(log_probabilities, wanted["eval_log_softmax_cls_f64"]) <= FLOAT64_BAR
    both = scipy.special.softmax(cls, axis=-1) + scipy.special.softmax(of_patches, axis=-1)
    assert relative_error(both, wanted["eval_sum_of_softmax_f64"]) <= FLOAT64_BAR


@pytest.mark.parametrize("name", [TALK, NO_TALK, SMALL_WEIGHTS, LARGER_WEIGHTS])
def test_losses_of_training(name):
    """The official losses, from the heads of two regions and from the patches."""
    this = official(name)
    figures, mask = this.golden.figures, this.golden.figures["in_mask"].astype(np.float64)
    regions = np.stack([mask, 1 - mask])
    labels = figures["in_targets"].astype(np.float64).swapaxes(0, 1)  # [N, regions, classes]
    shares = regions.mean(axis=(1, 2))
    mixed = 0.25 * labels[:, 0] + 0.75 * labels[:, 1]  # whatever the shares are

    def losses(variables, images):
        output, state = this.model.apply(
            variables, images, train=True, regions=regions, mutable=[HEADS, PATCHES]
        )
        cls, of_regions = heads_of(output, state)
        embedded, final = (state[PATCHES][x][0] for x in ("embedded", "final"))
        return cls, {
            "train_cls_loss_f64": released_class_loss(cls, mixed),
            "train_patch_loss_f64": released_mixing_loss(of_regions, labels, shares),
            "train_sim_loss_f64": released_contrastive_loss(embedded, final, mask.shape),
        }

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), this.variables)
        cls, found = jax.device_get(jax.jit(losses)(wide, this.golden.images))
    assert relative_error(cls, figures["train_logits_f64"]) <= FLOAT64_BAR
    for key, loss in found.items():
        np.testing.assert_allclose(loss.mean(), figures[key][0], rtol=1e-9, err_msg=key)


@pytest.mark.parametrize(("side", "ending"), [(9, ""), (5, "5")])
def test_the_loss_that_keeps_patches_apart(side, ending):
    """Of patches and embeddings that were drawn; on the smaller grid all have a border near."""
    figures = official(TALK).golden.figures
    with jax.enable_x64(True):
        patches = np.moveaxis(figures[f"in_patches{ending}"].astype(np.float64), 1, -1)
        patches = patches.reshape(len(patches), side * side, -1)
        embedded = figures[f"in_context{ending}"].astype(np.float64)
        loss = jax.jit(released_contrastive_loss, static_argnums=2)(embedded, patches, (side, side))
    wanted = figures[f"similarity_{side}x{side}_f64"][0]
    np.testing.assert_allclose(jax.device_get(loss).mean(), wanted, rtol=1e-9)


def test_either_head_drops_what_it_gets():
    """In training, a fifth of the features in the published models."""
    assert config_of(TINY)["head_dropout_rate"] == 0.2
    this = official(TALK)
    model = this.model.clone(head_dropout_rate=0.2)

    @jax.jit
    def train(variables, images, key):
        rngs = {"dropout": key}
        return heads_of(*model.apply(variables, images, train=True, mutable=[HEADS], rngs=rngs))

    images = this.golden.images.astype(np.float32)
    drops = jax.device_get(train(this.variables, images, jax.random.key(0)))
    for name, logits in zip(("logits_cls_f64", "logits_patch_f64"), drops, strict=True):
        assert relative_error(logits, this.golden.figures[name]) > 1e-2

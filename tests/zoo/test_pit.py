"""What only PiT has, beside the battery's tests; against timm."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import torch
from zoo_cases import Case, resizing
from zoo_training import drop_rates, our_step, their_step

from vit_jax.checkpoint import names
from vit_jax.checkpoint.names import shapes_of
from vit_jax.errors import UserError
from vit_jax.parity.figures import FLOAT64_BAR, relative_error

PLAIN, DISTILLED = "pit_b_224", "pit_ti_distilled_224"
SMALL: dict[str, Any] = {"depths": (1, 1, 1), "hidden_sizes": (32, 64, 128), "num_heads": (2, 4, 8)}
# Rows and columns that the last patches leave over, and maps that halve unevenly.
SIZES = {PLAIN: (60, 72), DISTILLED: (48, 80)}
POSITIONS = "posembed_input/pos_embedding"


@functools.cache
def case(name: str = DISTILLED, num_classes: int = 7) -> Case:
    return Case(name, SIZES[name], num_classes=num_classes, **SMALL)


def test_the_order_of_channels_heads_and_tokens_is_seen():
    this = case()
    pooling = this.flat["pool_1/conv/kernel"]
    interleaved = pooling.reshape(3, 3, 1, 2, -1).swapaxes(3, 4).reshape(pooling.shape)
    heads = {"head/kernel": this.flat["head_dist/kernel"]}
    tokens = {"cls": this.flat["dist"], "dist": this.flat["cls"]}
    for changed in ({"pool_1/conv/kernel": interleaved}, heads, tokens):
        assert relative_error(this.ours_from(**changed), this.theirs()) > FLOAT64_BAR


def test_training_returns_both_logits():
    ours, theirs = our_step(case()).outputs, their_step(case()).outputs
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other) <= FLOAT64_BAR
    assert relative_error(ours[0], theirs[1]) > FLOAT64_BAR


def test_drop_path_grows_over_all_stages():
    model = case().model.clone(drop_path_rate=0.3, depths=(1, 2, 1))
    rates = [rate for rate, _ in drop_rates(model, SIZES[DISTILLED]).values()]
    assert rates == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


@pytest.mark.parametrize("name", SIZES)
def test_weights_for_another_image_size(name):
    old, size = case(name), (88, 60)
    new = Case(name, size, **SMALL)
    edits = resizing(old.config, shapes_of(old.flat), old.size, size, "timm")
    assert set(edits) == {POSITIONS}
    resized = edits[POSITIONS](old.flat[POSITIONS])
    assert resized.shape == new.flat[POSITIONS].shape
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(old.flat[POSITIONS].astype(np.float64)).permute(0, 3, 1, 2),
        resized.shape[1:3],
        mode="bicubic",
        antialias=True,
    )
    np.testing.assert_allclose(resized, wanted.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_the_weights_tell_the_image_size():
    this = case(PLAIN)
    found = names.image_size_of(this.config, shapes_of(this.flat))
    assert found == (56, 70)  # the smallest with as many patches as 60×72 has
    np.testing.assert_array_equal(this.flat[POSITIONS].shape, (1, 7, 9, 32))


def test_an_image_smaller_than_a_patch():
    model = case().model
    with pytest.raises(UserError, match="smaller than one patch of 16×16"):
        jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False), np.zeros((1, 15, 32, 3))
        )

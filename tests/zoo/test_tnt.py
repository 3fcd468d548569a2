"""What only TNT has, beside the battery's tests; against timm."""

import functools

import jax
import numpy as np
import pytest
import torch
from zoo_cases import Case, resizing
from zoo_training import drop_rates

from vit_jax.checkpoint.names import shapes_of
from vit_jax.errors import UserError
from vit_jax.families.registry import comparable
from vit_jax.layers.conv import conv
from vit_jax.layers.patch import split_patches
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.models.tnt import TNT
from vit_jax.parity.figures import FLOAT32_BAR, FLOAT64_BAR, relative_error

SMALL, BASE = "tnt_s_patch16_224", "tnt_b_patch16_224"
SIZES = {SMALL: (32, 48), BASE: (48, 48)}
POSITIONS = "posembed_input/pos_embedding"


@functools.cache
def case(name: str = SMALL, size: tuple[int, int] | None = None, num_classes: int = 7) -> Case:
    return Case(name, size or SIZES[name], num_classes=num_classes, num_layers=2)


class Legacy(TNT):
    """timm's first version: the convolution before the patches, which so see their neighbours."""

    def _pixels(self, images):
        x = conv(self.inner_size, 7, stride=4, padding=3, name="embedding")(images)
        x = split_patches(x, (4, 4)).reshape(-1, 4, 4, self.inner_size)
        x = AddPositionEmbs(name="posembed_pixels")(x)
        return x.reshape(len(x), -1, self.inner_size)


@pytest.mark.parametrize(("size", "same"), [((16, 16), True), ((32, 48), False)])
def test_patches_that_see_their_neighbours_are_seen(size, same):
    this = case(size=size)
    legacy = Legacy(num_classes=this.num_classes, **comparable(this.config))
    error = relative_error(this.ours(legacy), this.theirs())
    assert (error <= FLOAT64_BAR) == same


def test_inner_branches_drop_patch_by_patch():
    rates = drop_rates(case().model.clone(drop_path_rate=0.2), SIZES[SMALL])
    examples, patches = 2, 2 * 3
    for path, (rate, drawn) in rates.items():
        assert rate == pytest.approx(0.2 if "encoderblock_1" in path else 0.0)
        assert drawn == (examples * patches if "/inner/" in path else examples)
    assert len(rates) == 2 * 4


def test_weights_for_another_image_size_are_timms():
    """timm resizes in float32: the bar is that of float32."""
    from timm.models.tnt import checkpoint_filter_fn

    old, new = case(size=(48, 48)), case()
    edits = resizing(old.config, shapes_of(old.flat), old.size, new.size, "timm")
    assert set(edits) == {POSITIONS}
    module = new.reference()
    state = {k: torch.from_numpy(x) for k, x in old.state.items()}
    module.load_state_dict(checkpoint_filter_fn(state, module), strict=True)
    ours = new.ours_from(**{**old.flat, POSITIONS: edits[POSITIONS](old.flat[POSITIONS])})
    assert relative_error(ours, new.theirs(module)) <= FLOAT32_BAR
    official = resizing(old.config, shapes_of(old.flat), old.size, new.size, "official")
    other = new.ours_from(**{**old.flat, POSITIONS: official[POSITIONS](old.flat[POSITIONS])})
    assert relative_error(other, new.theirs(module)) > FLOAT32_BAR


def test_an_image_smaller_than_a_patch():
    model = case().model
    with pytest.raises(UserError, match="smaller than one patch of 16×16"):
        jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False), np.zeros((1, 15, 32, 3))
        )

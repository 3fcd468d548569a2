"""What only DeiT, distilled DeiT and DeiT III have, beside the battery's tests; against timm."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import torch
from zoo_cases import Case, resizing

from vit_jax.checkpoint.names import shapes_of
from vit_jax.layers.head import HEADS, heads_of
from vit_jax.parity.figures import FLOAT64_BAR, relative_error

PLAIN, DISTILLED, THREE = (
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
)
POSITIONS = "posembed_input/pos_embedding"


@functools.cache
def case(name: str, size: tuple[int, int] = (48, 80), num_classes: int = 7) -> Case:
    return Case(name, size, num_classes=num_classes, num_layers=2)


def test_the_order_of_heads_and_tokens_is_seen():
    this = case(DISTILLED)
    heads = {
        a: this.flat[b]
        for leaf in ("kernel", "bias")
        for a, b in ((f"head/{leaf}", f"head_dist/{leaf}"), (f"head_dist/{leaf}", f"head/{leaf}"))
    }
    tokens = {"cls": this.flat["dist"], "dist": this.flat["cls"]}
    for changed in (heads, tokens):
        assert relative_error(this.ours_from(**changed), this.theirs()) > FLOAT64_BAR


def test_training_returns_both_logits():
    this = case(DISTILLED)
    module = this.reference().double()
    module.set_distilled_training(True)
    with torch.no_grad():
        theirs = module.train()(torch.from_numpy(this.images).permute(0, 3, 1, 2))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), this.variables)
        apply = jax.jit(lambda v, x: this.model.apply(v, x, train=True, mutable=[HEADS]))
        output, state = apply(wide, this.images)
    ours = heads_of(output, state)
    assert relative_error(np.asarray(output), this.ours64) <= FLOAT64_BAR
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(np.asarray(one), other.numpy()) <= FLOAT64_BAR
    mean = (np.asarray(ours[0]) + np.asarray(ours[1])) / 2
    assert relative_error(mean, this.ours64) <= FLOAT64_BAR


@pytest.mark.parametrize(("name", "prefix"), [(PLAIN, 1), (DISTILLED, 2), (THREE, 0)])
def test_weights_for_another_image_size_are_timms(name, prefix):
    """timm resizes in float32: the bar is that of float32."""
    from timm.models.deit import checkpoint_filter_fn

    old, new = case(name, (64, 64)), case(name)
    edits = resizing(old.config, shapes_of(old.flat), old.size, new.size, "timm")
    assert set(edits) == {POSITIONS}
    table = edits[POSITIONS](old.flat[POSITIONS])
    np.testing.assert_array_equal(table[:, :prefix], old.flat[POSITIONS][:, :prefix])
    module: Any = new.reference()
    state = {k: torch.from_numpy(x) for k, x in old.state.items()}
    module.load_state_dict(checkpoint_filter_fn(state, module), strict=True)
    ours = new.ours_from(**{**old.flat, POSITIONS: table})
    assert relative_error(ours, new.theirs(module)) <= 2e-5
    official = resizing(old.config, shapes_of(old.flat), old.size, new.size, "official")
    other = new.ours_from(**{**old.flat, POSITIONS: official[POSITIONS](old.flat[POSITIONS])})
    assert relative_error(other, new.theirs(module)) > 2e-5


@pytest.mark.parametrize("new", [(80, 48), (192, 320)])
def test_dino_resizes_positions_as_its_official_code(new):
    """By a scale of (n + 0.1) / N an axis, which is no other method's: in float64 here."""
    this = Case("dino_vits16", (112, 112), num_classes=0, num_layers=1)
    table = this.flat[POSITIONS].astype(np.float64)
    grid = tuple(side // 16 for side in new)
    maps = torch.from_numpy(table[:, 1:].reshape(1, 7, 7, -1)).permute(0, 3, 1, 2)
    scales = tuple((side + 0.1) / 7 for side in grid)
    maps = torch.nn.functional.interpolate(maps, scale_factor=scales, mode="bicubic")
    assert tuple(maps.shape[2:]) == grid
    official = maps.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1).numpy()
    resized = {
        method: resizing(this.config, shapes_of(this.flat), this.size, new, method)[POSITIONS](
            table
        )
        for method in (None, "bicubic", "timm")
    }
    np.testing.assert_array_equal(resized[None][:, :1], table[:, :1])
    np.testing.assert_allclose(resized.pop(None)[:, 1:], official, atol=1e-6 * table.std())
    for other in resized.values():
        assert np.abs(other[:, 1:] - official).max() > 1e-2 * table.std()


def test_dino_features_are_those_of_transformers_vit():
    this = Case("dino_vits8", (24, 24), layout="hf", num_classes=0, num_layers=2)
    assert this.error() <= FLOAT64_BAR
    this.assert_round_trip()

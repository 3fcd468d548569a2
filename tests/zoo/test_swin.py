"""Swin's tables of relative positions at other image sizes; the rest is in test_battery.py."""

import numpy as np
import pytest
import torch
from timm.layers import resize_rel_pos_bias_table
from zoo_cases import Case, resizing

from vit_jax.checkpoint import from_torch, names, to_torch
from vit_jax.checkpoint.names import shapes_of
from vit_jax.families.swin import resize_bias
from vit_jax.layers.relative import relative_position_index, shifted_regions
from vit_jax.models.swin import window_and_shift
from vit_jax.tree import arrays
from vit_jax.variables import named

NAME = "swin_tiny_patch4_window7_224"
TABLE = "stage_{}/encoderblock_0/MultiHeadDotProductAttention_0/relative_position_bias"
SIZES = {"hidden_size": 16, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 4, 4)}


def tables(image_size: tuple[int, int]) -> Case:
    return Case(NAME, image_size, **SIZES)


@pytest.mark.parametrize(("old", "new"), [((7, 7), (12, 12)), ((7, 7), (4, 4)), ((7, 7), (7, 2))])
def test_tables_are_resized_as_timm_does(old, new):
    table = np.random.default_rng(0).standard_normal((169, 3)).astype(np.float32)
    shape = ((2 * new[0] - 1) * (2 * new[1] - 1), 3)
    theirs = resize_rel_pos_bias_table(torch.from_numpy(table), new, shape).numpy()
    ours = resize_bias(table, old, new, "timm")
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    stretched = resize_bias(table, old, new, "official")
    assert np.abs(stretched - theirs).max() > 1e-2


@pytest.mark.parametrize("new", [(12, 12), (4, 4)])
def test_tables_are_stretched_as_the_official_code_does(new):
    table = np.random.default_rng(0).standard_normal((169, 3))
    size = [2 * side - 1 for side in new]
    square = torch.from_numpy(table).T.reshape(1, 3, 13, 13)
    theirs = torch.nn.functional.interpolate(square, size=size, mode="bicubic")
    theirs = theirs.reshape(3, -1).T.numpy()
    np.testing.assert_allclose(resize_bias(table, (7, 7), new, "official"), theirs, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "fits"), [((224, 224), 224), ((448, 448), 224), ((40, 40), 40), ((96, 96), 96)]
)
def test_the_tables_tell_an_image_size(size, fits):
    """The size of the smallest image whose windows are as large, where none is smaller than 7."""
    config = tables((32, 32)).config
    shapes = names.expected_shapes(config, num_classes=7, image_size=size)
    assert names.image_size_of(config, shapes) == (fits, fits)


def test_weights_fit_other_images():
    """Resized, the tensors of one image size have the shapes of the other, back and forth."""
    large, small = tables((224, 224)), tables((40, 96))
    edits = resizing(large.config, shapes_of(large.flat), large.size, small.size, "timm")
    resized = large.flat | {name: edit(large.flat[name]) for name, edit in edits.items()}
    assert shapes_of(resized) == shapes_of(small.flat)
    first = TABLE.format(0)
    np.testing.assert_array_equal(resized[first], large.flat[first])  # its windows stay
    assert small.flat[TABLE.format(3)].shape == (3 * 5, 4)  # windows of 2 × 3


def test_positions_of_a_small_window():
    """Row by row: the query minus the key, from the most negative distance."""
    wanted = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(relative_position_index((2, 2)), wanted)


def test_windows_shrink_and_shift_by_axis():
    assert window_and_shift((14, 7), 7) == ((7, 7), (3, 0))
    assert window_and_shift((5, 8), 7) == ((5, 7), (0, 3))


def test_regions_of_a_rolled_map():
    """In one dimension: windows of 2, shifted by 1. The last one holds the two ends of the map."""
    regions = shifted_regions((4, 2), (2, 2), (1, 0))
    np.testing.assert_array_equal(regions, [[0, 0, 0, 0], [3, 3, 6, 6]])


def test_the_official_repositorys_names():
    """timm's tensors with `downsample` a stage before, and what both make of the image size."""
    this = Case(NAME, (224, 224), **SIZES, num_classes=21_841)
    official = to_torch(this.variables, this.config, "official")
    assert official["head.weight"].shape == (21_841, 128)
    assert "layers.0.downsample.reduction.weight" in official
    assert not any(name.startswith("layers.3.downsample") for name in official)
    buffers = dict(this.module.named_buffers())
    made = {name: x for name, x in official.items() if name.endswith(("_index", "attn_mask"))}
    assert made.keys() == buffers.keys()
    for name, x in made.items():
        np.testing.assert_array_equal(x, buffers[name].numpy(), err_msg=name)
    back = arrays(named(from_torch(official, this.config, "official")))
    for name, x in this.flat.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)

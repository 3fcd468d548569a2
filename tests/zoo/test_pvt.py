"""PVT against figures of the official code; the rest is in test_battery.py."""

import numpy as np
import pytest
from zoo_cases import Case, config_of, resizing
from zoo_golden import Golden

from vit_jax.checkpoint import from_torch, names, to_torch
from vit_jax.checkpoint.names import shapes_of
from vit_jax.errors import UserError
from vit_jax.models import from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours
from vit_jax.tree import arrays, unflatten
from vit_jax.variables import collections, named

SIZES = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 2, 1, 2), "num_heads": (1, 2, 3, 4)}
BLOCKS = {
    "stage_0/encoderblock_0": "mid_block1_last",
    "stage_1/encoderblock_1": "mid_block2_last",
    "stage_2/encoderblock_0": "mid_block3_last",
}


@pytest.mark.parametrize(("name", "size"), [("native", (64, 64)), ("resized", (96, 128))])
def test_logits_are_the_official_codes(name, size):
    """Which resizes its positions at run time, bilinearly; ours were resized before."""
    golden = Golden(f"pvt_tiny_{name}")
    assert golden.images.shape[1:3] == size
    config = config_of("pvt_tiny", **SIZES)
    wide = {k: x.astype(np.float64) for k, x in golden.weights.items()}
    flat = dict(names.imported(wide, config, "torch"))
    old = names.image_size_of(config, shapes_of(flat))
    assert old == (64, 64)
    for key, edit in resizing(config, shapes_of(flat), old, size, "official").items():
        flat[key] = edit(flat[key])
    model = from_config(config, num_classes=7)
    variables = collections(unflatten(flat), names.statistics(config))
    trace = trace_ours(model, variables, golden.images, list(BLOCKS), np.float64)
    assert relative_error(trace.logits, golden.figures["logits_f64"]) <= FLOAT64_BAR
    for ours, theirs in zip(trace.blocks, BLOCKS.values(), strict=True):
        assert relative_error(ours, golden.figures[theirs]) <= FLOAT64_BAR


def test_official_names_both_ways():
    golden, config = Golden("pvt_tiny_native"), config_of("pvt_tiny", **SIZES)
    ours = from_torch(golden.weights, config, "torch")
    again = to_torch(ours, config, "torch")
    assert again.keys() == golden.weights.keys()
    for name, x in golden.weights.items():
        np.testing.assert_array_equal(again[name], x)
    assert all(x.dtype == np.float32 for x in arrays(named(ours)).values())


def test_hugging_face_takes_squares_only():
    with pytest.raises(UserError, match="takes square images; got 64×96"):
        Case("pvt_tiny", (64, 96), **SIZES).reference()

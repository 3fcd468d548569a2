"""What only LeViT has, beside the battery's tests; against timm."""

import functools

import numpy as np
import pytest
import torch
from zoo_cases import Case, resizing
from zoo_training import (
    drop_rates,
    our_step,
    their_step,
    values_per_channel,
)

from vit_jax.checkpoint import from_torch, to_torch
from vit_jax.checkpoint.names import shapes_of
from vit_jax.errors import UserError
from vit_jax.families.levit import resize_biases
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.tree import arrays
from vit_jax.variables import named

LINEAR, CONV = "levit_128s", "levit_conv_192"
SIZES = {LINEAR: (48, 80), CONV: (64, 64)}


@functools.cache
def case(name: str = LINEAR, num_classes: int = 7) -> Case:
    return Case(name, SIZES[name], num_classes=num_classes, depths=(1, 1, 1))


def test_the_order_of_distances_is_seen():
    this = case()
    biases = {k: x for k, x in this.flat.items() if k.endswith("attention_biases")}
    name = next(iter(biases))
    mirrored = biases[name].reshape(-1, 3, 5)[:, :, ::-1].reshape(biases[name].shape)
    assert relative_error(this.ours_from(**{name: mirrored}), this.theirs()) > FLOAT64_BAR


def test_training_gives_both_logits_and_statistics_of_the_batch():
    ours, theirs = our_step(case()), their_step(case())
    for one, other in zip(ours.outputs, theirs.outputs, strict=True):
        assert relative_error(one, other) <= FLOAT64_BAR
    assert relative_error(ours.outputs[0], theirs.outputs[1]) > FLOAT64_BAR
    for name, x in ours.statistics.items():
        if name.endswith("/mean"):
            assert relative_error(x, theirs.statistics[name]) <= FLOAT64_BAR, name
    values = values_per_channel(case(), ours, theirs)
    assert values["stem_0/norm/var"] == pytest.approx(2 * 24 * 40)
    assert values["stage_0/encoderblock_0/MlpBlock_0/Dense_0/norm/var"] == pytest.approx(2 * 3 * 5)
    assert values["stage_1/downsample/query/norm/var"] == pytest.approx(2 * 2 * 3)
    assert values["head_dist_norm/var"] == pytest.approx(2)


def test_all_blocks_drop_at_one_rate():
    rates = drop_rates(case().model.clone(drop_path_rate=0.1), SIZES[LINEAR])
    assert len(rates) == 2 * 3 + 2  # two branches a block, the MLP behind each downsampling
    assert set(rates.values()) == {(0.1, 2)}


def test_biases_are_resized_as_tables_of_signed_offsets():
    old, new = (3, 5), (6, 4)
    table = np.random.default_rng(0).standard_normal((2, 15))
    rows, columns = (np.abs(np.arange(1 - n, n)) for n in old)
    signed = torch.from_numpy(table.reshape(2, *old)[:, rows][:, :, columns])[None]
    interpolate = functools.partial(torch.nn.functional.interpolate, mode="bicubic")
    wanted = interpolate(signed, (11, 7), align_corners=False, antialias=True)
    ours = resize_biases(table, old, new, "timm").reshape(2, *new)
    np.testing.assert_allclose(ours, wanted[0, :, 5:, 3:].numpy(), atol=1e-12)
    np.testing.assert_array_equal(resize_biases(table, old, old, "timm"), table)


def test_a_distance_of_nothing_keeps_its_bias():
    table = np.random.default_rng(0).standard_normal((2, 16))
    resized = resize_biases(table, (4, 4), (7, 7), "official")
    np.testing.assert_allclose(resized[:, 0], table[:, 0], atol=1e-12)
    np.testing.assert_allclose(resized[:, -1], table[:, -1], atol=1e-12)
    only = resize_biases(table, (4, 4), (1, 1), "official")
    np.testing.assert_allclose(only, table[:, :1], atol=1e-12)


def test_weights_fit_another_image_size():
    this = case(CONV)
    edits = resizing(this.config, shapes_of(this.flat), this.size, (96, 80), "timm")
    assert len(edits) == 3 + 2
    resized = {k: edits[k](x) if k in edits else x for k, x in this.flat.items()}
    other = Case(CONV, (96, 80), depths=(1, 1, 1))
    assert shapes_of(resized) == shapes_of(other.flat)
    assert np.isfinite(other.ours_from(**resized)).all()


def test_the_official_repositorys_names():
    """Its tensors lie in timm's order, which puts heads and stem where it does."""
    this = Case(LINEAR, (64, 64), depths=(1, 1, 1))
    official = to_torch(this.variables, this.config, "official")
    indices = {name: x for name, x in official.items() if name.endswith("attention_bias_idxs")}
    in_order = [x for name, x in official.items() if name not in indices]
    tensors = [x for name, x in this.state.items() if "num_batches" not in name]
    for theirs, timms in zip(in_order, tensors, strict=False):
        np.testing.assert_array_equal(theirs, timms)
    assert {"patch_embed.6.c.weight", "blocks.1.m.2.bn.running_var", "head_dist.l.bias"} <= set(
        official
    )
    back = arrays(named(from_torch(official, this.config, "official")))
    for name, x in this.flat.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)
    # Which pair of a query and a key has which of the biases.
    wanted = [x for name, x in this.module.named_buffers() if name.endswith("bias_idxs")]
    for ours, theirs in zip(indices.values(), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
    with pytest.raises(UserError, match="takes square images"):
        to_torch(case(LINEAR).variables, case(LINEAR).config, "official")

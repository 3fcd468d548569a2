"""What only BoTNet has, beside the battery's tests; against timm."""

import functools

import jax
import numpy as np
import pytest
from zoo_botnet import SMALL_BOTNET, BoTNetCase
from zoo_cases import resizing
from zoo_training import (
    drop_rates,
    our_step,
    their_step,
    values_per_channel,
)

from vit_jax.checkpoint import names
from vit_jax.checkpoint.names import shapes_of
from vit_jax.errors import UserError
from vit_jax.layers.norm import BatchNorm
from vit_jax.models.botnet import BottleneckAttention
from vit_jax.parity.figures import FLOAT64_BAR, relative_error

SIZE = (64, 96)


@functools.cache
def case(activation: str = "relu") -> BoTNetCase:
    return BoTNetCase("botnet26t_256", SIZE, activation=activation, **SMALL_BOTNET)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("BatchNorm", functools.partial(BatchNorm, epsilon=1e-6)),
        ("BottleneckAttention", functools.partial(BottleneckAttention, scale_positions=True)),
    ],
)
def test_another_formula_is_seen(monkeypatch, name, wrong):
    monkeypatch.setattr(f"vit_jax.models.botnet.{name}", wrong)
    assert relative_error(case().ours(case().model), case().theirs()) > FLOAT64_BAR


def test_the_sign_of_offsets_is_seen():
    name = "stage_1/unit_1/mix/attention/column_offsets"
    changed = case().ours_from(**{name: case().flat[name][::-1]})
    assert relative_error(changed, case().theirs()) > FLOAT64_BAR


def test_training_takes_the_statistics_of_the_batch():
    ours, theirs = our_step(case()), their_step(case())
    assert relative_error(ours.outputs[0], theirs.outputs[0]) <= FLOAT64_BAR
    for name, x in ours.statistics.items():
        if name.endswith("/mean"):
            assert relative_error(x, theirs.statistics[name]) <= FLOAT64_BAR, name
    values = values_per_channel(case(), ours, theirs)
    assert values["stem_0/norm/var"] == pytest.approx(2 * 32 * 48)
    assert values["stage_2/unit_0/reduce/norm/var"] == pytest.approx(2 * 8 * 12)
    assert values["stage_2/unit_0/mix/norm/var"] == pytest.approx(2 * 4 * 6)  # behind the pooling


def test_drop_path_grows_over_all_stages():
    rates = drop_rates(case().model.clone(drop_path_rate=0.5), SIZE)
    assert [rate for rate, _ in rates.values()] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("method", ["timm", "official"])
def test_weights_fit_another_image_size(method):
    this, size = case(), (96, 32)
    edits = resizing(this.config, shapes_of(this.flat), SIZE, size, method)
    assert len(edits) == 2 * 3
    resized = {k: edits[k](x) if k in edits else x for k, x in this.flat.items()}
    wanted = names.expected_shapes(this.config, num_classes=7, image_size=size)
    assert shapes_of(resized) == wanted
    for name in edits:  # offset 0 stays in the middle
        old, new = this.flat[name], resized[name]
        if method == "official":
            np.testing.assert_allclose(new[len(new) // 2], old[len(old) // 2], atol=1e-6)
    assert names.image_size_of(this.config, wanted) == size


def test_a_map_that_does_not_halve():
    with pytest.raises(UserError, match=r"even height and width; got 5×8: .* multiples of 32"):
        jax.eval_shape(
            lambda x: case().model.init(jax.random.key(0), x, train=False),
            np.zeros((1, 40, 64, 3)),
        )

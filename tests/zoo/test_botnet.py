"""BoTNet against timm, and its attention against the figures of the paper's equations."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import torch
from zoo_cases import Case, resizing
from zoo_training import (
    bfloat16_error,
    drop_rates,
    map_errors,
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
STAGES = (("conv",), ("conv", "attention"), ("attention",), ("conv", "attention"))
WIDTHS = (32, 64, 128, 256)


class SmallCase(Case):
    """timm builds no BoTNet of other sizes by name: its parts are put together here."""

    def reference(self, *, matched: bool = True) -> torch.nn.Module:
        from timm.models.byoanet import model_cfgs
        from timm.models.byobnet import ByoBlockCfg, ByobNet

        blocks = tuple(
            tuple(
                ByoBlockCfg(
                    type={"conv": "bottle", "attention": "self_attn"}[kind],
                    d=1,
                    c=width,
                    s=2 if i > 0 and j == 0 else 1,
                    gs=0,
                    br=0.25,
                )
                for j, kind in enumerate(kinds)
            )
            for i, (kinds, width) in enumerate(zip(STAGES, WIDTHS, strict=True))
        )
        fields: dict[str, Any] = {"blocks": blocks, "act_layer": self.config["activation"]}
        module = ByobNet(
            model_cfgs["botnet26t"], num_classes=self.num_classes, img_size=self.size, **fields
        )
        state = {name: torch.from_numpy(np.array(x)) for name, x in self.state.items()}
        module.load_state_dict(state, strict=True)
        return module.eval()


@functools.cache
def case(activation: str = "relu", num_classes: int = 7) -> SmallCase:
    small = {"hidden_sizes": WIDTHS, "stages": STAGES, "activation": activation}
    return SmallCase("botnet26t_256", SIZE, num_classes=num_classes, **small)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_logits_are_timms(activation):
    assert case(activation).error() <= FLOAT64_BAR
    case(activation).assert_round_trip()


def test_a_registered_model_is_timms():
    this = Case("botnet50ts_256", (64, 64), num_classes=0)
    assert this.error() <= FLOAT64_BAR
    this.assert_round_trip()


def test_maps_are_timms():
    assert len(errors := map_errors(case())) == 5
    assert max(errors) <= FLOAT64_BAR


def test_gradients_are_timms():
    case("silu").assert_same_gradients()


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


def test_bfloat16():
    assert bfloat16_error(case()) < 0.1

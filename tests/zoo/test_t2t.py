"""What only T2T-ViT has, beside its figures in test_official.py."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from zoo_cases import change_encoder, config_of
from zoo_figures import official
from zoo_official import Official

from vit_jax.checkpoint import edits, names
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.position import AddPositionEmbs
from vit_jax.layers.sincos import sinusoid
from vit_jax.models import get_model, t2t
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.train import parameter_rules

PERFORMER, TRANSFORMER = "t2t_performer_tiny", "t2t_transformer_tiny"
SIZES = {"hidden_size": 48, "num_layers": 2, "num_heads": 3, "mlp_dim": 144, "token_size": 16}


def test_another_formula_is_seen(monkeypatch):
    this = official(PERFORMER)
    in_another_order = {
        key: np.roll(x, 16, axis=0) if ".kqv." in key else x
        for key, x in this.golden.weights.items()
    }
    logits = this.compute(this.read(in_another_order))["logits_f64"]
    assert relative_error(logits, this.golden.figures["logits_f64"]) > FLOAT64_BAR
    change_encoder(monkeypatch, t2t, norm=LayerNorm)
    assert this.logits_error() > FLOAT64_BAR


def test_sinusoid_is_the_official_table():
    table = official(TRANSFORMER).golden.figures["frozen:pos_embed"]
    np.testing.assert_array_equal(sinusoid(26, 48), table)


def test_what_is_drawn_once():
    """Orthogonal features of length √m, sines for every place, and no gradient to either."""
    layer, table = t2t.TokenPerformer(8), AddPositionEmbs(t2t._sinusoid, frozen=True)

    def total(params, patches):
        x = layer.apply({"params": params["layer"]}, patches, train=False)
        return table.apply({"params": params["table"]}, x).sum()

    @jax.jit
    def both(key, patches):
        x, variables = layer.init_with_output(key, patches, train=False)
        _, positions = table.init_with_output(key, x)
        params = {"layer": variables["params"], "table": positions["params"]}
        return params, jax.grad(total)(params, patches)

    patches = np.random.default_rng(0).standard_normal((1, 6, 3, 3, 2)).astype(np.float32)
    params, gradients = jax.device_get(both(jax.random.key(0), patches))
    w = params["layer"]["random_features"]
    np.testing.assert_allclose(w @ w.T, 4 * np.eye(4), atol=1e-5)
    np.testing.assert_array_equal(params["table"]["pos_embedding"], sinusoid(6, 8))
    assert not gradients["layer"]["random_features"].any()
    assert not gradients["table"]["pos_embedding"].any()
    assert gradients["layer"]["keys"]["kernel"].any()


def test_a_run_leaves_frozen_tables_as_they_are():
    config = common.get_config()
    config.model = ConfigDict(config_of("t2t_vit_7", **SIZES))
    rules = parameter_rules.freeze_rules(config)
    every = [*names.expected_shapes(config.model.to_dict(), num_classes=2, image_size=(32, 32))]
    frozen = parameter_rules.match_rules(rules, every, "freeze_rules")
    assert [name for name, stays in frozen.items() if stays] == [
        name for name in every if name.endswith(("pos_embedding", "random_features"))
    ]


def test_sizes_and_channels_that_do_not_fit():
    model = get_model("t2t_vit_7", num_classes=2, **SIZES)
    image = jax.ShapeDtypeStruct((1, 32, 40, 3), "float32")
    with pytest.raises(UserError, match="multiples of 16 pixels; got 32×40"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    config = config_of("t2t_vit_7", **SIZES)
    shapes = names.expected_shapes(config, num_classes=2, image_size=(32, 32))
    with pytest.raises(UserError, match="3 channels with these weights, not of 1"):
        edits.with_channels(config, shapes, 1)
    with pytest.raises(UserError, match=r"token_layer='perform'\. Did you mean 'performer'"):
        get_model("t2t_vit_7", token_layer="perform").init(
            jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False
        )


@pytest.mark.slow
def test_a_published_size_is_the_official_codes():
    """`t2t_vit_7` as it is published, of 224 pixels and 1000 classes."""
    name = "t2t_vit_7"
    this = Official(name, config_of(name), {"logits_f64": ""}, num_classes=1000)
    this.assert_names_both_ways()
    this.assert_same(np.float64)
    this.assert_same(np.float32)
    key = "tokens_to_token.attention1.w"  # the one that moves the logits least
    other = this.read({**this.golden.weights, key: this.golden.weights[key] * np.float32(1.01)})
    logits = this.compute(other)["logits_f64"]
    assert relative_error(logits, this.golden.figures["logits_f64"]) > FLOAT64_BAR

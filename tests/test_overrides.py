"""`--set FIELD=VALUE` for `train` and `plan`."""

import pytest

from vit_jax import cli, main
from vit_jax.errors import UserError
from vit_jax.overrides import overridden

RECIPE = """
from vit_jax.configs import common, models
def get_config():
    config = common.get_config()
    config.model = models.get_testing_config()
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return f"--config={path}"


def test_fields_that_the_recipe_has_and_has_not(recipe):
    settings = ["batch=64", "base_lr=1", "model.transformer.remat=qkv,mlp", "config.pp.crop=32"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    config, _ = main.parse([recipe, "--workdir=x", *arguments])
    assert (config.batch, config.base_lr, config.pp.crop) == (64, 1.0, 32)
    assert isinstance(config.base_lr, float)
    assert config.model.transformer.remat == "qkv,mlp"


def test_the_recipe_itself_is_not_changed(recipe):
    config, _ = main.parse([recipe, "--workdir=x"])
    changed, given = overridden(config, ["model.transformer.scan=True"])
    assert given == {"model.transformer.scan": True}
    assert changed.model.transformer.scan is True
    assert "scan" not in config.model.transformer


def test_a_models_field_may_take_another_type(recipe):
    settings = ["model.transformer.remat=True", "model.transformer.remat=qkv,mlp"]
    config, _ = main.parse([recipe, "--workdir=x", "--set", settings[0]])
    assert config.model.transformer.remat is True
    assert overridden(config, settings[1:])[0].model.transformer.remat == "qkv,mlp"
    with pytest.raises(UserError, match="type ConfigDict"):
        overridden(config, ["model.transformer=3"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch", "FIELD=VALUE"),
        ("batch=many", "type int; got 'many'"),
        ("base_lr=high", "type float; got 'high'"),
        ("seed=1.5", "type int; got '1.5'"),
        ("mesh=3", "type ConfigDict"),
        ("modle.scan=True", "no group of fields 'modle'"),
        ("batch.size=3", "no group of fields 'batch'"),
    ],
)
def test_bad_settings(recipe, setting, message):
    with pytest.raises(UserError, match=message):
        main.parse([recipe, "--workdir=x", "--set", setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("bacth=8", "Did you mean 'batch'"),
        ("model.pathces=3", "VisionTransformer has no field 'pathces'"),
        ("model.transformer.scam=True", "Encoder has no field 'scam'. Did you mean 'scan'"),
    ],
)
def test_fields_that_nothing_has(recipe, setting, message, capsys):
    _, _, file = recipe.partition("=")
    settings = ["batch=8", "batch_eval=8", "accum_steps=1", "pp.crop=32", setting]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert cli.main(["plan", "--config", file, *arguments]) == cli.BAD_INPUT
    assert message in capsys.readouterr().err

"""Every number of every config and of every model has a range, and one outside of it is refused."""

import dataclasses
import importlib
import math
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import cli, inference_time, models, recipes
from vit_jax.configs import common
from vit_jax.configs import inference_time as inference_time_config
from vit_jax.errors import UserError
from vit_jax.families import fields, registry
from vit_jax.ranges import Range, above, at_least, integer

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def is_number(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def holds_numbers(value) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(holds_numbers, value))
    return is_number(value)


def leaves(config: ConfigDict, prefix: str = ""):
    """(name, value, type) of every field, also of those without a value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, config.get_type(name)


def outside(known: Range) -> list:
    """Values on both sides of a range, and what is no number."""
    step = 1 if known.integer else 1e-3
    low = [] if known.low is None else [known.low if known.above else known.low - step]
    high = [] if known.high is None else [known.high if known.below else known.high + step]
    values = [*low, *high, math.nan, *([1.5] if known.integer else [math.inf])]
    return [x if known.integer else float(x) for x in values if x not in known.also]


# `profile` is empty by default: its numbers are steps. `pp.resize` is a number, a pair or nothing,
# `total_steps` a number, a text or nothing.
NUMERIC = sorted(
    {
        name
        for name, value, kind in leaves(common.get_config())
        if kind in (int, float) or holds_numbers(value)
    }
    | {"profile", "pp.resize", "total_steps"}
)


def test_every_number_of_a_run_has_a_range_and_nothing_else_has():
    assert sorted(common.RANGES) == NUMERIC


@pytest.mark.parametrize("field", NUMERIC)
def test_a_number_out_of_range_is_refused(field):
    known, default = common.RANGES[field], dict(common.flatten(common.get_config(), ()))[field]
    for value in outside(known):
        if known.rules:
            given = ((".*", 1.0), (".*", value))
        else:
            given = (*default[1:], value) if isinstance(default, tuple) else value
        config = common.get_config()
        place, _, name = field.rpartition(".")
        with config.ignore_type(), config.unlocked():
            group = config
            for part in filter(None, place.split(".")):
                group = group[part]
            group[name] = given
        with pytest.raises(UserError) as error:
            common.with_defaults(config)
        assert str(error.value) == f"config.{field} must be {known}, got {given!r}"


def test_the_defaults_every_recipe_and_every_model_are_in_range():
    common.with_defaults(common.get_config())
    arguments = {"vit": ["b16,cifar10"], "augreg": ["R_Ti_16"]}
    for name in recipes.installed().keys() - {"inference_time"}:
        module = importlib.import_module(f"vit_jax.configs.{name}")
        common.with_defaults(module.get_config(*arguments.get(name, [])))
    for spec in registry.registered().values():
        fields.check(spec.config)


def class_fields():
    """(family, field) of every constructor field that is declared to be a number, or several."""
    from vit_jax.layers.encoder import Encoder

    classes = {name: registry.model_class(name) for name in registry.families()}
    for family, cls in {**classes, "the encoder": Encoder}.items():
        for field in dataclasses.fields(cls):
            kind = getattr(field.type, "__name__", "") + str(field.type)
            if field.name not in ("parent", "name") and ("int" in kind or "float" in kind):
                yield family, field.name


def test_every_number_of_every_model_has_a_range():
    missing = [(family, name) for family, name in class_fields() if name not in fields.RANGES]
    for name, spec in registry.registered().items():
        for field, value in common.flatten(spec.config.to_dict(), ()):
            if holds_numbers(value) and fields.range_of(field) is None:
                missing.append((name, field))
    assert not missing


@pytest.mark.parametrize("field", sorted(fields.RANGES))
def test_a_models_number_out_of_range_is_refused(field):
    known = fields.RANGES[field]
    group, _, name = field.rpartition(".")
    for value in outside(known):
        for given in (value, (2, value)):
            config = {group: {name: given}} if group else {name: given}
            with pytest.raises(UserError) as error:
                fields.check(config, "config.model.")
            assert str(error.value) == f"config.model.{field} must be {known}, got {given!r}"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ViT-B_16", {"num_classes": -1}, "num_classes must be an integer of at least 0, got -1"),
        ("ViT-B_16", {"num_classes": 1.5}, "num_classes must be an integer"),
        ("ViT-B_16", {"hidden_size": 0}, "hidden_size must be an integer of at least 1, got 0"),
        (
            "ViT-B_16",
            {"transformer": {"dropout_rate": 1.5}},
            r"transformer.dropout_rate must be in \[0, 1\), got 1.5",
        ),
        ("R50+ViT-B_16", {"resnet": {"num_layers": (3, -4)}}, "resnet.num_layers must be"),
        ("Mixer-B_16", {"patches": {"size": (16, 0)}}, "patches.size must be"),
        ("swin_tiny_patch4_window7_224", {"depths": (2, -2, 6, 2)}, "depths must be"),
        ("deit_tiny_patch16_224", {"drop_path_rate": "much"}, "got 'much'"),
    ],
)
def test_get_model(name, changes, message):
    with pytest.raises(UserError, match=message):
        models.get_model(name, **changes)


def test_numpys_numbers_are_numbers():
    assert models.get_model("ViT-Ti_16", num_classes=np.int64(7)).num_classes == 7


def test_a_runs_model_is_checked_with_its_config():
    config = common.get_config()
    config.model = registry.resolve("ViT-Ti_16").config.copy_and_resolve_references().unlock()
    config.model.transformer.num_heads = 0
    with pytest.raises(
        UserError, match=r"config\.model\.transformer\.num_heads must be an integer"
    ):
        common.with_defaults(config)


@pytest.mark.parametrize("field", sorted(inference_time_config.RANGES))
def test_inference_time(field, tmp_path):
    config = inference_time_config.get_config()
    config.update(dict.fromkeys(inference_time_config.RANGES, 8) | {field: -1})
    with pytest.raises(UserError, match=f"config.{field} must be an integer of at least"):
        inference_time.inference_time(config, tmp_path)
    numeric = {name for name, value, _ in leaves(config) if is_number(value)}
    assert numeric == set(inference_time_config.RANGES)


def test_one_message_on_the_command_line(capsys, tmp_path):
    words = ["train", f"--config={CONFIGS}/digits.py", f"--workdir={tmp_path}/run"]
    assert cli.main([*words, "--config.base_lr=-1"]) == cli.BAD_INPUT
    message = "config.base_lr must be a finite number of at least 0, got -1.0"
    assert capsys.readouterr().err == f"vit-jax: error: {message}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (integer(1), "an integer of at least 1"),
        (integer(1, None), "an integer of at least 1 or None"),
        (integer(1, -1), "an integer of at least 1 or -1"),
        (above(0), "a finite number above 0"),
        (at_least(0.5), "a finite number of at least 0.5"),
        (Range(), "a finite number"),
        (Range(0, 1), "in [0, 1]"),
        (Range(0, 1, above=True, below=True), "in (0, 1)"),
    ],
    ids=str,
)
def test_words(known, text):
    assert str(known) == text


def test_numbers_beyond_every_float():
    assert 10**400 not in integer(1)
    assert float("inf") not in above(0)

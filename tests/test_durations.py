"""Durations of a run as texts, and the config that they make."""

import pathlib
import shlex

import pytest
import tiny_run

from vit_jax import durations, main
from vit_jax.configs import common
from vit_jax.durations import Duration
from vit_jax.errors import UserError
from vit_jax.train.resolved import resolved


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (7, 7),
        (0, 0),
        ("7steps", 7),
        ("1step", 1),
        ("90epochs", 9000),
        ("0.5 epochs", 50),
        ("1epoch", 100),
        ("3200images", 100),
        ("3e4images", 938),
        ("5%", 25),
        ("0.001%", 1),  # of what is not nothing, at least one step
        ("0%", 0),
    ],
)
def test_steps(value, steps):
    assert value in Duration(0)
    assert durations.steps(value, batch=32, epoch_images=3200, total=500) == steps


@pytest.mark.parametrize(
    "text", ["90", "epochs", "90epoch s", "-1epochs", "5hours", "nan%", "10min"]
)
def test_what_is_no_number_of_steps(text):
    assert text not in Duration(0)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400)])
def test_time(text, seconds):
    assert durations.seconds(text) == seconds
    assert text in common.RANGES["checkpoint_every"]
    assert text not in common.RANGES["eval_every"]
    assert durations.seconds("5%") is None is durations.seconds(5)


def test_a_config_in_steps_follows_its_batch():
    given = {
        "total_steps": "20epochs",
        "warmup_steps": "10%",
        "checkpoint_every": "10min",
        "evals": {"knn": {"kind": "knn", "every": "5epochs", "at": ("1%",)}, "val": {}},
    }
    for batch, total in ((8, 55), (16, 28)):
        config = common.with_defaults(tiny_run.config("", batch=batch, **given))
        found = resolved(config, epoch_images=22)
        assert (found.total_steps, found.warmup_steps) == (total, round(total / 10))
        assert found.checkpoint_every == "10min"
        assert found.evals.knn.at == (1,)
        assert (found.evals.knn.every, found.evals.val.every) == (round(110 / batch), 7)
        assert resolved(found, epoch_images=99) == found


@pytest.mark.parametrize(("rule", "rate"), [("none", 0.01), ("linear", 0.04), ("sqrt", 0.02)])
def test_the_rate_follows_the_batch(rule, rate):
    config = tiny_run.config("", batch=64, lr_scaling__rule=rule, lr_scaling__batch=16)
    found = resolved(common.with_defaults(config), epoch_images=22)
    assert found.base_lr == pytest.approx(rate, rel=1e-15)
    assert resolved(found, epoch_images=22) == found


def test_the_command_line_takes_both():
    words = ["--config=digits", "--workdir=x", "--config.warmup_steps=5%", "--config.eval_every=7"]
    changes = ["total_steps=3epochs", "evals.knn.kind=knn", "evals.knn.every=1epoch"]
    config, _ = main.parse([*words, *(word for change in changes for word in ("--set", change))])
    config = common.with_defaults(config)
    assert (config.warmup_steps, config.eval_every, config.total_steps) == ("5%", 7, "3epochs")
    assert (config.evals.knn.every, config.evals.knn.k) == ("1epoch", 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_steps": "5%"}, "config.total_steps must be an integer of at least 1 or None or a"),
        ({"eval_every": "10min"}, "config.eval_every must be an integer"),
        ({"lr_scaling__rule": "cubic"}, "unknown config.lr_scaling.rule 'cubic'"),
        ({"evals": {"a/b": {}}}, "an evaluation is named by letters"),
        ({"evals": {"test": {}}}, "'test' is the one of config.pp.test"),
        ({"evals": {"val": 3}}, "config.evals.val must be a group of fields"),
        (
            {"evals": {"val": {"kind": "accurate"}}},
            "config.evals.val.kind 'accurate'. Did you mean",
        ),
        ({"evals": {"val": {"shots": 3}}}, "of kind 'accuracy' has no field 'shots'"),
        ({"evals": {"val": {"every": -1}}}, "config.evals.val.every must be an integer of at"),
        ({"evals": {"val": {"at": (0,)}}}, "config.evals.val.at must be an integer of at least 1"),
        ({"evals": {"val": {"split": 3}}}, "config.evals.val.split must be like None, got 3"),
        ({"evals": {"k": {"kind": "knn", "k": 0}}}, "config.evals.k.k must be an integer of at"),
        ({"evals": {"f": {"kind": "fewshot", "l2": (0,)}}}, "config.evals.f.l2 must be a finite"),
    ],
    ids=str,
)
def test_bad_values(changes, message):
    config = tiny_run.config("", **changes)
    with pytest.raises(UserError) as error:
        resolved(common.with_defaults(config), epoch_images=22)
    assert message in str(error.value)


def test_every_number_of_an_evaluation_has_a_range():
    fields = common.EVALUATION | {
        k: v for f in common.EVALUATION_KINDS.values() for k, v in f.items()
    }
    numeric = {name for name, value in fields.items() if type(value) in (int, float, tuple)}
    assert numeric | {"every"} == set(common.EVALUATION_RANGES)


def test_what_the_page_on_runs_shows_is_understood():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "runs.md").read_text()
    blocks = [block.partition("\n")[::2] for block in page.split("```")[1::2]]
    commands = [
        shlex.split(command.removeprefix("vit-jax train "))
        for language, text in blocks
        if not language
        for command in text.replace("\\\n", "").strip().splitlines()
    ]
    configs = [common.with_defaults(main.parse(words)[0]) for words in commands]
    assert [config.total_steps for config in configs] == ["90epochs", 75000, "300epochs"]
    (shown,) = [text for language, text in blocks if language == "python"]
    config = common.get_config()
    exec(shown, {"config": config})
    assert len(common.with_defaults(config).evals) == 7

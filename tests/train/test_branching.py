"""Branches: a run that goes on from a step of another one, whose folder stays as it is."""

import pathlib

import pytest
import tiny_run

from vit_jax import train
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.train import branching, run_info

AT = 6
CONSTANT = {
    "decay_type": "constant",
    "optim": "adamw",
    "ema__decay": 0.9,
    "warmup_steps": 2,
    "keep_best": None,
    "checkpoint_every": 4,
    "eval_every": 4,
}
COOLED = {**CONSTANT, "total_steps": 10, "cooldown_steps": "40%", "cooldown_type": "1-sqrt"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    return tiny_run.write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def trunk(images, tmp_path_factory) -> pathlib.Path:
    """Twelve steps at a constant rate; of its checkpoints the newest and the sixth steps' stay."""
    workdir = tmp_path_factory.mktemp("runs") / "trunk"
    changes = {"total_steps": 12, "keep_checkpoints": 1, "keep_every": AT}
    train.train_and_evaluate(tiny_run.config(images, **CONSTANT | changes), workdir)
    return workdir


def test_multiples_of_keep_every_stay_for_good(trunk):
    assert sorted(tiny_run.stored(trunk)) == [AT, 12]


def test_a_cooldown_from_a_step_is_the_run_that_was_configured_so(images, trunk, tmp_path):
    before = tiny_run.files(trunk)
    whole, branch = tmp_path / "whole", tmp_path / "branch"
    train.train_and_evaluate(tiny_run.config(images, **COOLED), whole)
    config = tiny_run.config(images, **COOLED, resume_from=f"{trunk}@{AT}")
    train.train_and_evaluate(config, branch)
    assert tiny_run.files(trunk) == before

    # The checkpoint of step 8 is that of a branch, two steps old; 10 ends the cooldown.
    want, got = tiny_run.stored(whole), tiny_run.stored(branch)
    assert sorted(got) == sorted(want) == [8, 10]
    assert got == want
    lines = tiny_run.lines(branch)
    assert lines[0]["step"] == AT + 1
    assert lines == [line for line in tiny_run.lines(whole) if line["step"] > AT]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates == pytest.approx([0.01 * (1 - (i / 4) ** 0.5) for i in range(4)], rel=1e-5)
    recorded = run_info.load(branch).config
    assert (recorded["cooldown_steps"], recorded["resume_from"]) == (4, f"{trunk}@{AT}")

    # What began as a branch goes on by itself.
    train.train_and_evaluate(config, branch)
    assert tiny_run.lines(branch) == lines


@pytest.mark.parametrize(
    ("changes", "source", "message"),
    [
        ({}, "{trunk}", "expected RUN@STEP"),
        ({}, "{trunk}@newest", "expected RUN@STEP"),
        ({}, "{trunk}@7", r"has no checkpoint of step 7; it has \[6, 12\]"),
        ({}, "{trunk}/nowhere@6", "is not a run directory"),
        ({}, "{workdir}/../run@6", "is --workdir itself"),
        ({"total_steps": 6}, "{trunk}@6", "nothing is left to train"),
        ({"optim": "sgd"}, "{trunk}@6", "cannot go on as this run: optim was 'adamw', is 'sgd'"),
        ({"model__hidden_size": 12}, "{trunk}@6", r"model.hidden_size was 10, is 12"),
        ({"dataset": "{others}"}, "{trunk}@6", "A branch must have the classes of its run"),
    ],
    ids=str,
)
def test_refused(images, trunk, tmp_path, changes, source, message):
    places = {"trunk": trunk, "workdir": tmp_path / "run", "others": tmp_path / "images"}
    config = tiny_run.config(images, **COOLED | changes, resume_from=source.format(**places))
    if "dataset" in changes:
        tiny_run.write_images(tmp_path / "images", train=1, test=1)
        for split in ("train", "test"):
            (tmp_path / "images" / split / "cat").rename(tmp_path / "images" / split / "zebra")
        config.dataset = str(tmp_path / "images")
    before = tiny_run.files(trunk)
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoint_*"))
    assert not (tmp_path / "run" / "run.json").exists()
    assert tiny_run.files(trunk) == before


def test_what_differs_is_said(images, trunk, caplog):
    caplog.set_level("WARNING", "absl")
    from vit_jax.train.same_config import changed

    config = common.with_defaults(tiny_run.config(images, **COOLED))
    assert set(changed(config, trunk)) >= {"cooldown_steps", "cooldown_type", "total_steps"}
    with pytest.raises(UserError, match=r"\('runs/a', 5\)|expected RUN@STEP"):
        branching.parse("runs/a@")
    assert branching.parse("gs://bucket/a@b@120000") == ("gs://bucket/a@b", 120000)

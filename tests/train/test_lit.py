"""Runs that learn texts beside a locked image tower: what stays, what is told, what is refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny_run
from recipes import random_params

from vit_jax import checkpoint, cli, train
from vit_jax.configs import lit, models
from vit_jax.errors import UserError
from vit_jax.tree import arrays

STEPS = 4
EVALS = {
    "found": {"kind": "retrieval", "split": "train", "every": 0},
    "named": {"kind": "zeroshot", "prompts": "name", "every": 0},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    return tiny_run.write_images(folder, test=9, captions=True)


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> pathlib.Path:
    """A trained classifier of five other classes."""
    from vit_jax.models import from_config

    model = models.get_testing_config()
    shapes = jax.eval_shape(
        lambda x: from_config(model, num_classes=5).init(jax.random.key(0), x, train=False),
        np.zeros((1, 16, 16, 3), np.float32),
    )
    params = random_params({k: x.shape for k, x in arrays(shapes["params"]).items()}, 0.2)
    path = tmp_path_factory.mktemp("tower") / "tower.npz"
    checkpoint.save(path, {"params": params}, model=model)
    return path


def config(images, tower=None, **changes):
    fixed = {"total_steps": STEPS, "checkpoint_every": 2, "eval_every": 2, "warmup_steps": 1}
    fixed |= {"optim": "adamw", "base_lr": 1e-2, "weight_decay": 0.1, "pairs": True}
    fixed |= {"keep_checkpoints": 0, "contrastive__rows": 4}
    return tiny_run.config(
        images, **fixed | {"contrastive__image_tower": tower and str(tower)} | changes
    )


@pytest.fixture(scope="module")
def run(images, tower, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train.train_and_evaluate(config(images, tower, evals=EVALS), workdir)
    return workdir


def test_the_image_tower_is_the_checkpoints_and_stays(run, tower):
    ours, theirs = (arrays(checkpoint.load(path)) for path in (run, tower))
    locked = {name.removeprefix("img/"): x for name, x in ours.items() if name.startswith("img/")}
    assert locked.keys() == {name for name in theirs if not name.startswith("head/")}
    for name, x in locked.items():
        np.testing.assert_array_equal(x, theirs[name])
    stored = tiny_run.stored(run)
    changed = {name for name, x in stored[STEPS].items() if x != stored[2][name]}
    assert not any("'img'" in name for name in changed)
    assert any("'txt'" in name and "'kernel'" in name for name in changed)
    assert "params['t']" in changed
    assert not any("'img'" in name for name in stored[STEPS] if name.startswith("rest"))


def test_the_log_tells_the_factor_and_both_halves_of_the_loss(run):
    lines = [line for line in tiny_run.lines(run) if "train_loss" in line]
    assert len(lines) == STEPS
    assert lines[0]["t"] == pytest.approx(10)
    assert lines[-1]["t"] != lines[0]["t"]
    for line in lines:
        halves = line["image_to_text_loss"], line["text_to_image_loss"]
        assert sum(halves) / 2 == pytest.approx(line["train_loss"], rel=1e-5)
    tested = [line for line in tiny_run.lines(run) if "loss_test" in line]
    assert [line["step"] for line in tested] == [2, STEPS]
    assert tested[-1]["examples_test"] == 18
    assert 0 < tested[-1]["loss_test"] < 5
    assert tested[-1]["text_to_image@1_test"] <= tested[-1]["text_to_image@10_test"] <= 1


def test_a_run_that_goes_on_is_the_uninterrupted_run(run, images, tower, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    shutil.rmtree(workdir / f"checkpoint_{STEPS}")
    train.train_and_evaluate(config(images, tower, evals=EVALS), workdir)
    assert tiny_run.lines(workdir) == tiny_run.lines(run)
    assert tiny_run.stored(workdir)[STEPS] == tiny_run.stored(run)[STEPS]


def test_figures_of_the_run_are_those_of_the_command(run, images, capsys):
    def command(*more: str) -> dict:
        argv = ["zeroshot", "--weights", str(run), "--dataset", str(images), "--json", *more]
        assert cli.main(argv) == 0
        return json.loads(capsys.readouterr().out)

    mine = next(line for line in tiny_run.lines(run) if "found/examples" in line)
    found = command("--retrieval", "--split=train")
    assert found["num_images"] == mine["found/examples"] == 22
    assert found["num_texts"] == 44
    for name in (f"{way}@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)):
        assert found[name] == pytest.approx(mine[f"found/{name}"], abs=1e-9)
    mine = next(line for line in tiny_run.lines(run) if "named/accuracy" in line)
    found = command("--prompts=name")
    assert found["num_examples"] == mine["named/examples"] == 18
    assert found["top1"] == pytest.approx(mine["named/accuracy"])


def test_eval_says_what_to_use(run, images, capsys):
    assert cli.main(["eval", str(run), "--dataset", str(images)]) == cli.BAD_INPUT
    assert "vit-jax zeroshot" in capsys.readouterr().err


def test_the_sigmoid_loss_and_a_head_of_the_image_tower(images, tower, tmp_path):
    """The head, which would be zeros, is drawn; it is trained, and what is below it is not."""
    changed = config(images, tower, contrastive__loss="sigmoid", total_steps=2, eval_every=0)
    changed.model.out_dim = (6, 6)
    changed.freeze_rules = lit.locked(changed.model)
    train.train_and_evaluate(changed, tmp_path / "run")
    lines = tiny_run.lines(tmp_path / "run")
    assert np.isfinite([line["train_loss"] for line in lines if "train_loss" in line]).all()
    assert next(line["b"] for line in lines if "b" in line) == pytest.approx(-2.71)
    ours, theirs = (arrays(checkpoint.load(path)) for path in (tmp_path / "run", tower))
    assert ours["img/head/kernel"].shape == (10, 6)
    assert np.std(ours["img/head/kernel"]) > 0.1
    assert np.abs(ours["img/head/bias"]).max() > 0
    np.testing.assert_array_equal(ours["img/embedding/kernel"], theirs["embedding/kernel"])
    assert ours["b"] != pytest.approx(-2.71, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evals": {"a": {}}}, "kind 'accuracy' is not for objective='contrastive'.*retrieval, ze"),
        ({"pairs": False, "evals": {"a": {"kind": "zeroshot"}}}, "takes no texts.*accuracy, fewsh"),
        ({"evals": {"a": {"kind": "zeroshot", "averaging": "x"}}}, "unknown config.evals.a.averag"),
        ({"contrastive__image_tower": "/nowhere"}, "--config.contrastive.image_tower=/nowhere"),
        ({"accum_steps": 2}, "objective='contrastive' cannot go with config.accum_steps"),
        ({"model__text__vocab_size": 9}, "has 19 entries, and the model a place for 9: set"),
        ({"text__length": 9}, "expected texts of up to 8 tokens, got 9"),
    ],
)
def test_refused_before_anything_is_trained(images, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(config(images, **{"keep_best": None} | changes), tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoint_*"))


def test_a_whole_checkpoint_and_a_tower_of_another_are_too_many(run, images, tower, tmp_path):
    with pytest.raises(UserError, match="is the whole model, towers included; set either it or"):
        train.train_and_evaluate(config(images, tower, pretrained=str(run)), tmp_path / "run")


@pytest.mark.parametrize(
    ("argument", "optim", "vocabulary"),
    [("b16b", "adamw", "LiT-B16B.txt"), ("l16ti", "adafactor", "LiT-L16Ti.model")],
)
def test_the_recipe(argument, optim, vocabulary):
    made = lit.get_config(argument)
    assert made.optim == optim
    assert made.text.vocabulary == f"gs://vit_models/lit/{vocabulary}"
    assert (made.base_lr, made.weight_decay * made.base_lr) == (1e-3, pytest.approx(0.01))
    # What is locked, of which a head of the image tower is none.
    assert [rule for rule, frozen in made.freeze_rules if frozen] == [r"img/.*"]
    assert (made.freeze_rules[0][0] == r"img/head/.*") == (argument == "b16b")

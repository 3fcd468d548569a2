"""The evaluations that a run's config names, in the run and beside it."""

import json
import pathlib
import shutil
import types

import pytest
import tiny_run
from ml_collections import ConfigDict

from vit_jax import cli, train
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.evaluate import kinds, plot, watching
from vit_jax.train import checkpointing, metrics
from vit_jax.train.run_lock import run_lock

STEPS = 4
EVALS = {
    "val": {"split": "train", "every": 2},
    "raw": {"split": "train", "every": 2, "weights": "raw"},
    "3shot": {"kind": "fewshot", "shots": 3, "every": 0, "at": (1,)},
    "once": {"kind": "knn", "k": 3, "every": 0, "at": ("75%",), "at_end": False},
    "later": {"split": "train", "standalone": True},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    return tiny_run.write_images(tmp_path_factory.mktemp("data") / "images", test=9)


def config(images, evals=EVALS, **changes):
    fixed = {"total_steps": STEPS, "eval_every": 3, "checkpoint_every": 1, "keep_checkpoints": 0}
    fixed |= {"ema__decay": 0.5, "keep_best": "3shot/accuracy", "warmup_steps": 1, "base_lr": 0.3}
    return tiny_run.config(images, **fixed | changes, evals=evals)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train.train_and_evaluate(config(images), workdir)
    return workdir


def figures(workdir, name: str) -> dict[int, dict]:
    """The figures of an evaluation, by step; for 'test' those without a prefix."""
    found = {}
    for line in metrics.read_all(workdir):
        own = {k: v for k, v in line.items() if k.startswith(f"{name}/") or k.endswith(f"_{name}")}
        found |= {line["step"]: own} if own else {}
    return found


def test_each_is_made_when_it_is_due_under_its_name(run):
    due = {"test": [3, 4], "val": [2, 4], "raw": [2, 4], "3shot": [1, 4], "once": [3], "later": []}
    assert {name: sorted(figures(run, name)) for name in due} == due
    assert set(figures(run, "test")[4]) == {"accuracy_test", "loss_test", "examples_test"}
    assert figures(run, "val")[4]["val/examples"] == 22
    assert set(figures(run, "3shot")[4]) == {f"3shot/{x}" for x in ("accuracy", "l2", "examples")}


def test_raw_and_averaged_weights_are_others(run):
    val, raw = figures(run, "val")[4], figures(run, "raw")[4]
    assert val["val/loss"] != raw["raw/loss"]


@pytest.mark.parametrize(
    ("name", "step", "options"),
    [("3shot", 4, ["fewshot", "--shots=3"]), ("once", 3, ["knn", "--k=3"])],
)
def test_a_probe_in_training_is_that_of_the_command(run, images, name, step, options, capsys):
    argv = ["eval", str(run), "--dataset", str(images), f"--checkpoint={step}", "--json", "--probe"]
    assert cli.main([*argv, *options, "--batch=7"]) == 0
    found, mine = json.loads(capsys.readouterr().out), figures(run, name)[step]
    assert found["top1"] == mine[f"{name}/accuracy"]
    assert found.get("l2") == mine.get(f"{name}/l2")
    assert found["num_examples"] == mine[f"{name}/examples"]


def test_keep_best_takes_any_figure(run):
    found = {step: line["3shot/accuracy"] for step, line in figures(run, "3shot").items()}
    _, best = checkpointing.stored_steps(run, "3shot/accuracy")
    assert found[best] == max(found.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_best": "val/accuracy_top5"}, "one of accuracy_test, loss_test, examples_test, 3s"),
        ({"keep_best": "later/accuracy"}, "keep_best='later/accuracy' is no figure"),
        (
            {"evals": {"a": {"weights": "ema"}}, "ema__decay": 0.0},
            "this run keeps no moving average",
        ),
        (
            {"evals": {"a": {"weights": "old"}}},
            "config.evals.a.weights='old'; expected one of best",
        ),
        ({"evals": {"a": {"dataset": "/nowhere"}}}, "config.evals.a: '/nowhere' is neither"),
        ({"evals": {"a": {"kind": "knn", "k": 23}}}, "config.evals.a: k=23 neighbours of 22"),
    ],
    ids=str,
)
def test_refused_before_anything_is_trained(images, tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(config(images, **{"keep_best": None} | changes), tmp_path / "run")
    assert message in str(error.value)
    assert not list(tmp_path.glob("run/checkpoint_*"))


def test_classes_and_labels_of_another_dataset_are_the_runs(tmp_path):
    """Nothing is computed: of the engine only the names of the figures are asked."""
    engine = types.SimpleNamespace(task=types.SimpleNamespace(top5=False, counts=True))
    folder = tiny_run.write_images(tmp_path / "images", train=1, test=2) / "test"
    for number, path in enumerate(sorted(folder.rglob("*.png")), 1):
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08d}.png"))
    tiny_run.write_json(tmp_path / "real.json", [[0, 1], [], [1], [0]])
    complete = common.with_defaults(config("", batch_eval=4))
    setting = kinds.Setting(complete, engine, ["dog", "horse", "cat"])

    def labels(**entry):
        given = common.evaluation("other", {"dataset": str(folder), **entry})
        made = kinds.KINDS["accuracy"]("other", ConfigDict(given), setting)
        return [batch["label"].tolist() for batch in made.datasets[0]]

    assert labels() == [[2, 2, 0, 0]]
    dog, cat = [1, 0, 0], [0, 0, 1]
    assert labels(by_position=False, real_labels=str(tmp_path / "real.json")) == [
        [[1, 0, 1], [0, 0, 0], dog, cat]
    ]
    setting.class_names.remove("cat")
    with pytest.raises(UserError, match=r"config\.evals\.other\.by_position=True"):
        labels()


# --- beside the run ------------------------------------------------------------------------------


def test_a_watched_run_is_evaluated_as_its_checkpoints_appear(run, images, tmp_path, monkeypatch):
    """They appear one by one, and one that was listed is gone before it is read."""
    workdir, said = tmp_path / "run", []
    shutil.copytree(
        run, workdir, ignore=lambda _, names: {"checkpoint_3", "checkpoint_4"} & {*names}
    )
    before = tiny_run.files(workdir)
    stored, gone = checkpointing.stored_steps, iter([[1, 2, 3]])
    monkeypatch.setattr(
        checkpointing,
        "stored_steps",
        lambda *args: (next(gone, stored(*args)[0]) if len(said) == 4 else stored(*args)[0], None),
    )

    def say(text):
        said.append(text)
        if len(said) == 5:
            shutil.copytree(run / "checkpoint_4", workdir / "checkpoint_4")

    entries = {"mine": {"split": "train"}, "mine_raw": {"split": "train", "weights": "raw"}}
    watching.watch(workdir, entries, poll=0.01, say=say)
    assert "step 3: the run removed the checkpoint" in said[4]
    for mine, own in (("mine", "val"), ("mine_raw", "raw")):
        found = figures(workdir, mine)
        assert sorted(found) == [1, 2, 4]
        for step in (2, 4):  # to the last bit, whatever the batch is
            values = figures(run, own)[step].values()
            assert list(found[step].values()) == list(values)
    shutil.rmtree(workdir / "checkpoint_4")
    after = tiny_run.files(workdir)
    assert {path: after[path] for path in before if path != pathlib.Path()} == before
    assert {path.parts[0] for path in after.keys() - before.keys()} == {"evals"}


def test_the_command_watches_what_the_config_leaves_to_it(run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    assert cli.main(["eval", str(workdir), "--watch"]) == 0
    assert capsys.readouterr().out.count("later/accuracy") == STEPS
    assert figures(workdir, "later")[2]["later/loss"] == figures(run, "val")[2]["val/loss"]
    assert cli.main(["eval", str(workdir), "--watch"]) == 0  # nothing is left to do
    assert capsys.readouterr().out == ""

    assert plot._of_evaluations(plot._run(workdir), "accuracy") == [
        "3shot/accuracy",
        "later/accuracy",
        "once/accuracy",
        "raw/accuracy",
        "val/accuracy",
    ]

    shutil.rmtree(workdir / f"checkpoint_{STEPS}")  # a run that ended before its last step
    assert cli.main(["eval", str(workdir), "--watch", "--patience=0.0001"]) == 0
    assert "no new checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--dataset=NAME_OR_PATH says what to evaluate on"),
        (["--dataset=x", "--name=a"], "--name goes with --watch"),
        (["--watch", "--checkpoint=2"], "--checkpoint does not go with --watch"),
        (["--watch", "--patience=0"], "--patience must be above 0"),
        (["--watch", "--name=a"], "--name goes with --dataset"),
        (["--watch", "--dataset=/nowhere"], "config.evals.accuracy: '/nowhere' is neither"),
        (["--watch", "--dataset=x", "--name=a/b"], "named by letters"),
    ],
    ids=str,
)
def test_bad_options(run, tmp_path, capsys, options, message):
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(run / "run.json", workdir)
    assert cli.main(["eval", str(workdir), *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in workdir.iterdir()] == ["run.json"]


def test_an_evaluation_belongs_to_one_process(run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    (workdir / "evals" / "later").mkdir(parents=True)
    with run_lock(workdir / "evals" / "later"):
        assert cli.main(["eval", str(workdir), "--watch"]) == 2
    assert "is in use by the run of process" in capsys.readouterr().err
    info = json.loads((workdir / "run.json").read_text())
    info["config"]["evals"]["later"]["standalone"] = False
    (workdir / "run.json").write_text(json.dumps(info))
    assert cli.main(["eval", str(workdir), "--watch"]) == 2
    assert "has no evaluation with standalone=True" in capsys.readouterr().err

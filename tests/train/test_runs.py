"""`vit-jax runs`: which runs there are, in what state, with what figures and differences."""

import json
import os
import socket
import sys
import time

import fsspec
import pytest
import tiny_run

from vit_jax import cli
from vit_jax.configs import common
from vit_jax.train import run_info, run_lock


def make_run(folder, lines=(), checkpoints=(), note=None, **changes):
    """The small files of a run: nothing else is read."""
    folder.mkdir(parents=True)
    config = common.with_defaults(tiny_run.config("images", **changes))
    run_info.save(run_info.RunInfo.of(config, ["cat", "dog"]), folder)
    for step in checkpoints:
        (folder / f"checkpoint_{step}").mkdir()
    if lines:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
    if note:
        tiny_run.write_json(folder / run_lock.FILE, note)


def evaluations(*values):
    return [
        {"step": 10 * i, "accuracy_test": value, "loss_test": 1 - value}
        for i, value in enumerate(values, start=1)
    ]


@pytest.fixture
def folder(tmp_path):
    training = [{"step": 32, "grad_norm/head": 1.0}, {"step": 33, "train_loss": 0.5, "lr": 0.1}]
    alive = {"host": "elsewhere", "process": 1}
    make_run(tmp_path / "a" / "finished", evaluations(0.5, 0.75, 0.625), (55, 60), optim="adamw")
    make_run(tmp_path / "b", evaluations(0.25) + training, (30,), note=alive, keep_best="loss_test")
    make_run(tmp_path / "c", note={"host": socket.gethostname(), "process": 2**22 + 1})
    (tmp_path / "b" / "run.json").touch()
    (tmp_path / "data").mkdir()
    return tmp_path


def listed(capsys, *words) -> dict:
    assert cli.main(["runs", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def test_states_figures_and_differences(folder, capsys):
    found = listed(capsys, folder, folder / "a")
    assert found["differing"] == ["keep_best", "optim"]
    a, b, c = found["runs"]
    assert [one["path"].removeprefix(f"{folder}/") for one in (a, b, c)] == ["a/finished", "b", "c"]
    assert [(one["state"], one["step"]) for one in (a, b, c)] == [
        ("finished", 60),
        ("running", 33),
        ("stopped", 0),  # its process is gone
    ]
    assert a["config"] == {"keep_best": "accuracy_test", "optim": "adamw"}
    assert a["figures"]["accuracy_test"] == {"last": 0.625, "best": 0.75, "best_step": 20}
    assert a["figures"]["loss_test"] == {"last": 0.375, "best": 0.25, "best_step": 20}
    assert set(b["figures"]) == {"accuracy_test", "loss_test"}
    assert c["figures"] == {}

    long_ago = time.time() - 2 * run_lock.WATCH
    os.utime(folder / "b" / run_lock.FILE, (long_ago, long_ago))
    assert listed(capsys, folder / "b")["runs"][0]["state"] == "stopped"


def test_runs_on_an_object_store(folder, capsys):
    (folder / "b" / "checkpoint_30" / "params").write_text("")  # stores have no empty folders
    fsspec.filesystem("memory").put(f"{folder}/b", "/bucket/runs/b", recursive=True)
    (stored,) = listed(capsys, "memory://bucket/runs")["runs"]
    (local,) = listed(capsys, folder / "b")["runs"]
    assert stored == local | {"path": "memory://bucket/runs/b"}
    assert (stored["state"], stored["step"]) == ("running", 33)
    assert cli.main(["runs", "memory://bucket/none"]) == 2
    assert "memory://bucket/none is no folder" in capsys.readouterr().err


def test_what_people_see(folder, capsys):
    assert cli.main(["runs", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [
        f"{folder}/a/finished",
        "finished",
        "60/60",
        "accuracy_test",
        "0.625",
        "0.75",
        "at",
        "20",
    ] in lines
    assert [f"{folder}/b", "running", "33/60", "loss_test", "0.75", "0.75", "at", "10"] in lines
    assert ["run", "keep_best", "optim"] in lines
    assert [f"{folder}/c", "accuracy_test", "sgd"] in lines
    assert cli.main(["runs", str(folder / "a"), "--figure", "loss_test"]) == 0
    assert " loss_test   0.375   0.25 at 20" in capsys.readouterr().out


def test_a_narrow_terminal_gets_lists(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "38")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["runs", "a", "c"]) == 0
    first = ["a/finished", "  state: finished", "  step: 60/60", "  figure: accuracy_test"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[: len(first)] == first
    assert ["c", "sgd"] in map(str.split, shown)  # a table that fits stays one


def test_a_run_that_cannot_be_read_is_left_out_aloud(folder, capsys):
    (folder / "c" / "run.json").write_text("{")
    assert cli.main(["runs", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert f"{folder}/c" not in out
    assert f"left out: {folder}/c/run.json is not a description of a run" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["data"], "the folder of a run holds a run.json"),
        (["a", "--figure", "acuracy_test"], "Did you mean 'accuracy_test'"),
    ],
    ids=str,
)
def test_bad_input(folder, words, message, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert cli.main(["runs", *words]) == 2
    assert message in capsys.readouterr().err

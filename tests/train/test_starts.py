"""What `run.json` says of each start, and what a finished run keeps."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest
import tiny_run

from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh
from vit_jax.errors import UserError
from vit_jax.train import run_info
from vit_jax.train.provenance import repositories
from vit_jax.train.same_config import require_same_config
from vit_jax.train.starts import record


def config_of(**changes):
    return common.with_defaults(tiny_run.config("images", **changes))


def start(workdir, step: int, **changes):
    mesh = make_mesh({"data": 2, "fsdp": 2})
    return record(config_of(**changes), ["cat", "dog"], workdir, step=step, mesh=mesh)


def test_every_start_is_added(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--config=a.py", "--api-key=secret"])
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_a=1 --xla_b=2")
    start(tmp_path, 0)
    start(tmp_path, 10, weight_decay=0.5, mesh__fsdp=2)
    info = run_info.load(tmp_path)
    first, second = info.starts
    assert (first["step"], second["step"]) == (0, 10)
    assert first["changed"] == {}
    assert second["changed"] == {"mesh.fsdp": [1, 2], "weight_decay": [0.0, 0.5]}
    assert first["command"] == ["main.py", "--config=a.py", "--api-key=***"]
    assert first["devices"] == {"kind": jax.devices()[0].device_kind, "count": 4}
    assert first["hosts"] == 1
    assert first["mesh"] == {"data": 2, "fsdp": 2, "model": 1}
    assert first["environment"]["LIBTPU_INIT_ARGS"] == "--xla_a=1 --xla_b=2"
    assert first["versions"] == info.versions
    assert {"vit-jax", "python", "jax", "jaxlib", "flax", "optax", "grain"} <= info.versions.keys()
    assert first["time"] <= second["time"]
    assert info.config["weight_decay"] == 0.5


def test_a_finished_run_stays_as_it_was_described(tmp_path):
    start(tmp_path, 0)
    start(tmp_path, 60, weight_decay=0.5)
    info = run_info.load(tmp_path)
    assert info.config["weight_decay"] == 0.0
    assert info.starts[-1]["changed"] == {"weight_decay": [0.0, 0.5]}
    start(tmp_path, 60, weight_decay=0.5, total_steps=80)  # which trains on
    assert run_info.load(tmp_path).config["weight_decay"] == 0.5


def test_a_description_from_before_starts_were_kept(tmp_path):
    start(tmp_path, 0)
    path = tmp_path / "run.json"
    old = json.loads(path.read_text())
    del old["starts"]
    tiny_run.write_json(path, old)
    assert run_info.load(tmp_path).starts == ()
    assert len(start(tmp_path, 5).starts) == 1
    tiny_run.write_json(path, {"model": 1})
    with pytest.raises(UserError, match="is not a description of a run"):
        start(tmp_path, 5)


def test_secrets_of_a_config_are_not_written_and_do_not_make_it_another(tmp_path):
    config = config_of(pretrained="https://me:pw@host/b.npz", tfds_data_dir="s3://b?token=pw")
    record(config, ["cat"], tmp_path, step=0, mesh=make_mesh({"data": 4}))
    assert "pw" not in (tmp_path / "run.json").read_text()
    require_same_config(config, tmp_path)


def git(folder: pathlib.Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)
    return done.stdout.decode().strip()


def test_the_commit_of_the_code(tmp_path, monkeypatch):
    package, elsewhere = tmp_path / "repository" / "package", tmp_path / "elsewhere"
    for folder in (package, elsewhere):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert repositories(package, elsewhere) == {}
    git(package.parent, "init")
    # Not tracked, as a package in a virtual environment is not by the project's repository.
    git(package.parent, "commit", "--allow-empty", "-m", "first")
    assert repositories(package, elsewhere) == {}
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "second")
    commit = git(package, "rev-parse", "HEAD")
    root = str(package.parent)
    assert repositories(package, elsewhere) == {root: {"commit": commit, "dirty": False}}
    (package / "notes.txt").write_text("not tracked")
    assert not repositories(package, elsewhere)[root]["dirty"]
    (package / "__init__.py").write_text("changed = True")
    assert repositories(elsewhere, package)[root] == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert repositories(package, package) == {}

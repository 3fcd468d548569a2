"""`--checkpoint best|newest|STEP` of the commands that read a run."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
import tiny_run

from vit_jax import cli
from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh
from vit_jax.train import engine as engine_lib
from vit_jax.train import run_info
from vit_jax.train.checkpointing import Checkpoints, stored_steps

STEPS, BEST = [2, 4, 6], 4


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A run of which the best checkpoint is not the newest, with a random head at each step."""
    folder = tmp_path_factory.mktemp("run")
    images = tiny_run.write_images(folder / "images")
    config = common.with_defaults(tiny_run.config(images, keep_best="accuracy_test"))
    engine = engine_lib.build(config, make_mesh(config.mesh), num_classes=2)
    fresh = engine.init(jax.random.key(0))
    with Checkpoints(folder / "run", 0, "accuracy_test") as checkpoints:
        for step in STEPS:
            head = fresh.params["head"]
            kernel = jax.random.normal(jax.random.key(step), head["kernel"].shape)
            params = {**fresh.params, "head": {**head, "kernel": kernel}}
            state = dataclasses.replace(fresh, step=jnp.asarray(step), params=params)
            checkpoints.save(state, {"accuracy_test": 0.9 if step == BEST else 0.5})
    run_info.save(run_info.RunInfo.of(config, ["cat", "dog"]), folder / "run")
    return folder / "run"


def predicted(capsys, path: pathlib.Path, *options: str) -> tuple[list, str]:
    capsys.readouterr()
    image = next(pathlib.Path(path).parent.glob("images/test/cat/*"))
    assert cli.main(["predict", str(path), str(image), "--json", *options]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_the_best_the_newest_and_a_step(run, capsys):
    assert stored_steps(run, "accuracy_test") == (STEPS, BEST)
    seen = []
    for options, step in (
        ([], 6),
        (["--checkpoint=newest"], 6),
        (["--checkpoint=best"], 4),
        (["--checkpoint=2"], 2),
    ):
        got, err = predicted(capsys, run, *options)
        assert f"checkpoint of step {step}" in err
        assert ("the best is that of step 4" in err) == (step != BEST)
        npz = run.parent / f"{step}.npz"
        words = ["convert", str(run), str(npz), "--to", "official", *options]
        assert cli.main(words) == 0
        assert predicted(capsys, npz)[0] == got
        seen.append(got)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2] != seen[3] != seen[0]
    images = str(run.parent / "images")
    assert cli.main(["eval", str(run), "--dataset", images, "--checkpoint=best"]) == 0
    assert "checkpoint of step 4, the best" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [("1", "no checkpoint of step 1"), ("worst", "expected best, newest or a step")],
)
def test_bad_choices(run, capsys, option, message):
    words = ["eval", str(run), "--dataset", "x", f"--checkpoint={option}"]
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_file_offers_no_choice(capsys, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"")
    image = tmp_path / "a.png"
    image.write_bytes(b"")
    assert cli.main(["predict", str(path), str(image), "--checkpoint=best"]) == 2
    assert "is not a run directory" in capsys.readouterr().err

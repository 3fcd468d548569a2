"""A run of a model with running statistics and two heads, and every command on it."""

import json

import numpy as np

from vit_jax import cli
from vit_jax.checkpoint import load
from vit_jax.tree import arrays


def test_commands_on_a_run(tmp_path, capsys):
    run, exported = tmp_path / "run", tmp_path / "levit.safetensors"
    recipe = "configs/deit.py:levit_128s"
    assert cli.main(["train", f"--config={recipe}", f"--workdir={run}", "--smoke"]) == 0
    statistics = arrays(load(run)["batch_stats"])
    assert statistics
    # Three batches have moved them from 0 and 1.
    assert not any(np.isin(x, (0, 1)).all() for x in statistics.values())
    assert cli.main(["convert", str(run), str(exported), "--to", "timm"]) == 0
    back = arrays(load(exported)["batch_stats"])
    for name, x in statistics.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)
    images = run / "smoke" / "images"
    answers = []
    for weights in (run, exported):
        capsys.readouterr()
        assert cli.main(["inspect", str(weights), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["config"]["family"] == "levit"
        assert found["image_size"] == [64, 64]
        assert found["class_names"] == ["round", "square"]
        image = str(next((images / "test" / "round").iterdir()))
        assert cli.main(["predict", str(weights), image, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
        assert cli.main(["eval", str(weights), "--dataset", str(images), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["num_examples"] == 12
    assert answers[0] == answers[1]

"""Runs on images that are no squares and of any number of channels, up to predictions of them."""

import json

import numpy as np
import pytest
import tiny_run

from vit_jax import cli, inference
from vit_jax.errors import UserError
from vit_jax.input_pipeline import recipes
from vit_jax.train import train_and_evaluate

SIZE = (16, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_run_is_evaluated_predicted_and_continued(tmp_path, capsys, channels):
    data = tiny_run.write_images(tmp_path / "data")
    changes = {"pp__crop": SIZE, "pp__channels": channels, "total_steps": 2, "eval_every": 0}
    config = tiny_run.config(data, **changes)
    workdir = tmp_path / "run"
    train_and_evaluate(config, str(workdir))
    loaded = inference.load_model(workdir)
    preprocess = loaded.weights.model.preprocess
    assert (preprocess.height_width, preprocess.channels) == (SIZE, channels)

    image = data / "test" / "cat" / "0.png"
    pixels = loaded.read_image(image)
    record = {"image": image.read_bytes(), "label": 0}
    evaluated = recipes.eval_transform(config.pp, 2)(record)["image"]
    assert pixels.shape == (*SIZE, channels)
    np.testing.assert_allclose(pixels, evaluated, atol=1e-6)

    capsys.readouterr()
    assert cli.main(["eval", str(workdir), f"--dataset={data}", "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["top1"]
    assert cli.main(["predict", str(workdir), f"--dataset={data}"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    right = [path.split("/")[-2] == label for path, label, _ in lines]
    assert np.mean(right) == pytest.approx(accuracy)

    again = tiny_run.config(data, **changes, pretrained=str(workdir))
    train_and_evaluate(again, str(tmp_path / "again"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pp__crop": (16, 0)}, "config.pp.crop must be"),
        ({"pp__crop": (16, 16, 3)}, "config.pp.crop must be"),
        ({"pp__crop": SIZE, "pp__resize": 32}, "must both be"),
        ({"pp__crop": SIZE, "pp__resize": (32, 32)}, "another aspect ratio"),
        ({"pp__crop": SIZE, "pp__resize": (8, 64)}, "is smaller than pp.crop"),
        ({"pp__channels": 1, "pp__mean": (0.1, 0.2, 0.3)}, "a number for each of the 1 channels"),
        ({"pp__channels": 1, "pp__augment": "deit"}, "changes colours"),
        ({"pp__channels": 0}, "config.pp.channels must be"),
    ],
)
def test_shapes_that_cannot_be_are_refused(tmp_path, changes, message):
    data = tiny_run.write_images(tmp_path, 1, 1)
    with pytest.raises(UserError, match=message):
        train_and_evaluate(tiny_run.config(data, **changes), str(tmp_path / "run"))
    assert not list(tmp_path.glob("run/checkpoint*"))

"""`vit-jax demo`: from real images to a PyTorch checkpoint that timm loads and agrees with."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch

from vit_jax import cli, inference
from vit_jax.input_pipeline.loader import TestDataset
from vit_jax.input_pipeline.sources import TfdsSource

STEPS = 150


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    short = [f"--config.total_steps={STEPS}", "--config.warmup_steps=10", "--config.eval_every=50"]
    assert cli.main(["demo", "--workdir", str(workdir), *short]) == 0
    return workdir


@pytest.fixture(scope="module")
def predictions(demo):
    """(images, labels, logits of the run) of the whole test split."""
    loaded = inference.load_model(demo)
    test = TestDataset(TfdsSource("digits", "test", demo / "data"), loaded.prepare, batch_size=90)
    batches = list(test)
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches]).argmax(-1)
    return images, labels, loaded.logits(images)


def test_it_ends_with_the_accuracy_of_the_exported_file(demo, predictions, capsys):
    assert cli.main(["demo", "--workdir", str(demo), f"--config.total_steps={STEPS}",
                     "--config.warmup_steps=10", "--config.eval_every=50"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    _, labels, logits = predictions
    accuracy = (logits.argmax(-1) == labels).mean()
    assert len(labels) == 360
    assert out.splitlines()[-1] == f"digits test top-1: {100 * accuracy:.1f} %"
    assert accuracy > 0.3  # three times chance, after a hundredth of the training
    for name in ("vit_digits.npz", "vit_digits.safetensors", "images/7.png"):
        assert (demo / name).exists()
        assert name.split("/")[0] in out


@pytest.mark.parametrize("name", ["vit_digits.npz", "vit_digits.safetensors"])
def test_exports_are_the_run(demo, predictions, name):
    images, _, logits = predictions
    np.testing.assert_array_equal(inference.load_model(demo / name).logits(images), logits)


def test_timm_builds_the_model_from_the_metadata_and_agrees(demo, predictions):
    images, _, logits = predictions
    path = demo / "vit_digits.safetensors"
    with safetensors.safe_open(path, "pt") as f:
        build = json.loads(f.metadata()["timm"])
    model = timm.create_model(build["architecture"], **build["model_args"]).eval()
    model.load_state_dict(safetensors.torch.load_file(path), strict=True)
    with torch.no_grad():
        theirs = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(theirs, logits, rtol=0, atol=2e-5 * logits.std())
    np.testing.assert_array_equal(theirs.argmax(-1), logits.argmax(-1))
    assert build["pretrained_cfg"]["mean"] == [0.5] * 3


def test_the_next_commands_work(demo, capsys):
    images = sorted(str(p) for p in (demo / "images").glob("*.png"))
    assert len(images) == 10
    assert cli.main(["predict", str(demo), *images[:2], "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2

"""What terminal, page and Markdown say of gradients, training and pixels."""

import json

import pytest

from vit_jax.commands import parity as command
from vit_jax.families.preprocess import Preprocess
from vit_jax.parity import figures, report
from vit_jax.parity.gradients import Gradients
from vit_jax.parity.pixels import PixelErrors, Pixels
from vit_jax.parity.tensors import TensorError
from vit_jax.parity.training import Recipe, Training

_SAME = figures.Drift("logits", "logits", 1e-15, 1e-15, 1e-6, 1e-6)
_TENSORS = (TensorError("head/kernel", "head.weight", 2e-12),)


def comparison(*, gradient=2e-12, loss=1.5, pixel=0.001):
    setting = figures.Setting((), _SAME, (), 1.0)
    tensors = (TensorError("head/kernel", "head.weight", gradient),)
    timm = PixelErrors("timm", "its own", pixel, 1e-4, 1e-6, 1.0, ("timm antialiases",), True)
    torchvision = PixelErrors("torchvision", "ours", 2.0, 0.1, 1e-3, 1.0, (), False)
    return figures.Comparison(
        "a",
        "timm",
        "random",
        (8, 8),
        2,
        setting,
        setting,
        (),
        {"jax": "1"},
        Gradients(1.0, 1.0, tensors, ("mask_token",)),
        Training(str(Recipe(1)), (1.5,), (loss,), _TENSORS, 1),
        Pixels(("x/cat.jpg",), Preprocess(), (timm, torchvision)),
    )


def test_the_terminal_the_page_and_markdown_say_the_same(capsys):
    found = comparison()
    command._print(found, None)
    shown = capsys.readouterr().out, report.render(found), report.render_markdown(found)
    for said in (
        "Gradients",
        "mask_token",
        "2.0e-12",
        "1 steps of adamw, learning rate 0.001, eps 1e-08, weight decay 0.05",
        "timm antialiases",
        "cat.jpg",
        "differs, not counted",
    ):
        assert all(said in text for text in shown), said
    assert shown[0].splitlines()[-1].startswith("same: with matched numerics")


@pytest.mark.parametrize("wrong", [{"gradient": 1e-8}, {"loss": 1.500001}, {"pixel": 0.5}])
def test_each_part_decides(wrong):
    assert comparison().verdict == "same"
    found = comparison(**wrong)
    assert found.verdict == "differs"
    told = json.loads(report.render_json(found))
    verdicts = [told[part]["verdict"] for part in ("gradients", "training", "pixels")]
    assert sorted(verdicts) == ["differs", "same", "same"]
    assert report.conclusion(found).count(";") == 3
    assert "not " in report.conclusion(found) or "otherwise" in report.conclusion(found)

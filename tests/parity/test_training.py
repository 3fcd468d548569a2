"""Gradients and steps of training against PyTorch in float64, and what must be seen to differ."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from timm.optim import param_groups_weight_decay
from zoo_cases import config_of

from vit_jax.errors import UserError
from vit_jax.parity import compare, gradients, references, report, subject, task, training
from vit_jax.parity.gradients import GRADIENT_BAR, compare_gradients
from vit_jax.parity.tensors import tensor_errors
from vit_jax.parity.training import LOSS_BAR, PARAMETER_BAR, Recipe, compared_with, train_ours

STEPS = 10
VIT = {"hidden_size": 24, "transformer": {"num_layers": 2, "num_heads": 3, "mlp_dim": 48}}
DEIT = {"hidden_size": 24, "num_layers": 1, "num_heads": 3, "mlp_dim": 48}
DINOV2 = DEIT
UNUSED = {"mask_token"}  # timm's DINOv2 has no part of pretraining
SWIN = {"hidden_size": 12, "depths": (2, 1), "num_heads": (1, 2)}
# Registered name, fields, image size, reference.
MODELS = {
    "vit": ("ViT-Ti_16", VIT, (32, 48), "timm"),
    "deit": ("deit_tiny_patch16_224", DEIT, (32, 48), "timm"),
    "dinov2": ("vit_small_patch14_dinov2", DINOV2, (28, 42), "timm"),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", DINOV2, (28, 42), "timm"),
    "vit, hf": ("ViT-Ti_16", VIT, (32, 48), "hf"),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, (64, 96), "timm"),
}
ADAMW, SGD = Recipe(STEPS), Recipe(STEPS, "sgd", 1e-2)
PLAIN_SGD = dataclasses.replace(SGD, weight_decay=0.0)


@functools.cache
def drawn(key, *, num_classes=5, steps=STEPS):
    name, fields, size, against = MODELS[key]
    this = subject.prepare(config_of(name, **fields), None, size, num_classes, seed=0)
    width = num_classes or fields["hidden_size"]
    library = references.get(against)
    return task.draw(this, library, width=width, steps=steps, num_images=2, seed=0)


@functools.cache
def ours(key, recipe):
    return train_ours(drawn(key), recipe)


# --- gradients ------------------------------------------------------------------------------------


@functools.cache
def our_gradients():
    return gradients.our_gradients(drawn("vit"))


def compared():
    return gradients.compared_with(drawn("vit"), our_gradients())


def test_every_gradient_is_pytorchs():
    found = compared()
    assert found.verdict == "same"
    assert 0 < found.error < 1e-11
    assert {x.ours for x in found.tensors} == set(drawn("vit").subject.params)
    assert found.missing == ()


def test_every_gradient_is_transformers():
    found = gradients.compared_with(drawn("vit, hf"), our_gradients())
    assert found.verdict == "same"
    assert found.tensors[0].theirs.startswith("vit.")


def test_gradients_of_a_model_without_classes():
    found = compare_gradients(drawn("vit", num_classes=0, steps=1))
    assert found.verdict == "same"
    assert found.error < 1e-11
    assert not any(x.ours.startswith("head") for x in found.tensors)


@pytest.mark.parametrize("name", ["blocks.0.norm1.bias", "blocks.1.attn.qkv.weight", "cls_token"])
def test_one_gradient_that_is_wrong_is_named(name, monkeypatch):
    """The logits and the loss are the same: only the way back differs."""

    def wrong(this):
        module = task.their_module(this)
        module.get_parameter(name).register_hook(lambda g: g * (1 + 1e-6))
        return module

    monkeypatch.setattr(gradients, "their_module", wrong)
    found = compared()
    assert found.verdict == "differs"
    assert found.tensors[0].theirs == name
    assert found.tensors[0].error > GRADIENT_BAR
    assert abs(found.loss - found.their_loss) < 1e-12


def test_two_parameters_that_the_reference_has_as_one_are_refused():
    """timm adds the position of the class token to the token: one step would move it twice."""
    this = drawn("dinov2_registers")
    with pytest.raises(UserError, match="trains otherwise; take another reference"):
        task.in_our_names(this, module := task.their_module(this), dict(module.state_dict()))


def test_another_activation_is_seen(monkeypatch):
    def erf(this):
        module = task.their_module(this)
        for part in module.blocks:
            part.mlp.act = torch.nn.GELU()
        return module

    monkeypatch.setattr(gradients, "their_module", erf)
    found = compared()
    assert found.verdict == "differs"
    assert found.error > 1e-5


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "recipe"),
    [
        ("vit", ADAMW),
        ("vit", SGD),
        ("vit, hf", PLAIN_SGD),
        ("deit", ADAMW),
        ("swin", ADAMW),
        ("dinov2", ADAMW),
    ],
)
def test_training_is_pytorchs(key, recipe):
    found = compared_with(drawn(key), ours(key, recipe), recipe)
    assert found.loss_error <= LOSS_BAR
    assert found.error <= PARAMETER_BAR
    assert found.verdict == "same"
    assert len(found.losses) == STEPS
    compared = {x.ours for x in found.tensors}
    assert compared == set(drawn(key).subject.params) - UNUSED
    # It did train: a comparison of weights that stay proves nothing. Only a key's bias has no
    # gradient, because softmax takes no notice of it.
    before = drawn(key).subject.params
    for name in compared:
        x = ours(key, recipe).params[name]
        assert name.endswith("key/bias") or np.abs(x - before[name]).max() > 1e-7, name


@pytest.mark.parametrize("key", ["vit", "deit", "swin", "dinov2"])
@pytest.mark.parametrize(
    "other",
    [{"decayed": "all"}, {"eps": 1e-7}, {"weight_decay": 0.04}, {"learning_rate": 1.001e-3}],
)
def test_another_recipe_is_seen(key, other):
    found = compared_with(drawn(key), ours(key, ADAMW), dataclasses.replace(ADAMW, **other))
    assert found.verdict == "differs"
    assert found.error > PARAMETER_BAR


def test_weight_decay_in_the_gradient_is_seen(monkeypatch):
    """torch.optim.SGD's own weight decay goes through the momentum; timm's SGDW and ours do not."""
    monkeypatch.setattr("timm.optim.sgdw.SGDW", torch.optim.SGD)
    recipe = dataclasses.replace(SGD)
    found = compared_with(drawn("vit"), ours("vit", SGD), recipe)
    assert found.verdict == "differs"


@pytest.mark.parametrize("key", ["vit", "deit", "swin"])
def test_weight_decay_applies_as_timm_does_it(key):
    module = task.their_module(drawn(key))
    groups = param_groups_weight_decay(module, 0.05, no_weight_decay_list=module.no_weight_decay())
    by_timm = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    named = dict(module.named_parameters())
    decayed = training.their_decayed(module, ADAMW)
    assert {name for name, d in decayed.items() if d} == {
        name for name, p in named.items() if id(p) in by_timm
    }
    assert all(training.their_decayed(module, dataclasses.replace(ADAMW, decayed="all")).values())
    # It is what our own default says, too: kernels.
    kernels = {name for name in drawn(key).subject.params if name.endswith("kernel")}
    assert set(training.our_decayed(drawn(key), module, ADAMW)) == kernels


def test_an_error_that_is_not_a_number_is_the_worst():
    expected = {name: ("theirs", np.ones(2)) for name in "ab"}
    found = tensor_errors({"a": np.full(2, 3.0), "b": np.full(2, np.nan)}, expected)
    assert [x.ours for x in found] == ["b", "a"]
    assert not dataclasses.replace(_gradients(), tensors=found).same
    assert not dataclasses.replace(_gradients(), tensors=()).same


def _gradients():
    return gradients.Gradients(1.0, 1.0, tensor_errors({"a": np.ones(1)}, {"a": ("t", np.ones(1))}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"steps": 0}, "at least 1; got 0"), ({"steps": 1, "eps": float("nan")}, "eps must be at")],
)
def test_a_recipe_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        Recipe(**fields)


# --- the whole ------------------------------------------------------------------------------------


def test_all_of_it_in_the_report(tmp_path):
    tiny = config_of("deit_tiny_patch16_224", **DEIT)
    sizes = {"num_classes": 5, "image_size": (32, 48), "num_images": 2}
    found = compare(tiny, gradients=True, train=Recipe(2), **sizes)
    assert found.verdict == "same"
    for suffix in ("html", "md", "json"):
        report.write_report(tmp_path / f"r.{suffix}", found)
    page, text = (tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()
    for said in (found.training.recipe, found.gradients.tensors[0].ours, "Gradients", "Training"):
        assert said in page
        assert said in text
    assert "|" not in text.replace("max |", "").replace("reference|", "")  # lists, no wide tables
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["gradients"]["verdict"] == told["training"]["verdict"] == told["verdict"] == "same"
    assert told["training"]["losses"] == list(found.training.losses)
    wrong = dataclasses.replace(found.training, their_losses=(1.0, 2.0))
    assert dataclasses.replace(found, training=wrong).verdict == "differs"

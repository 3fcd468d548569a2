"""`compare` on models small enough to run often: figures, blocks, verdicts, bad input."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from recipes import unflatten
from shapes import param_shapes

from vit_jax import checkpoint
from vit_jax.errors import UserError
from vit_jax.families.registry import resolve
from vit_jax.layers.attention import choice
from vit_jax.layers.attention import packed as packed_attention
from vit_jax.layers.attention.choice import attending, packed_over_mesh
from vit_jax.models import from_config
from vit_jax.parity import compare, figures, references, subject
from vit_jax.parity.figures import FLOAT64_BAR, Drift, Setting, relative_error
from vit_jax.parity.libraries import timm as timm_library

TINY = {
    "model_name": "tiny",
    "patches": {"size": (8, 8)},
    "hidden_size": 24,
    "transformer": {"num_layers": 3, "num_heads": 3, "mlp_dim": 48},
    "classifier": "token",
}
MIXER = {
    "model_name": "tiny mixer",
    "patches": {"size": (8, 8)},
    "hidden_dim": 24,
    "num_blocks": 2,
    "tokens_mlp_dim": 12,
    "channels_mlp_dim": 48,
}
HYBRID = TINY | {"patches": {"size": (2, 2)}, "resnet": {"num_layers": (), "width_factor": 1}}
SIZES = {"num_classes": 5, "image_size": (32, 48), "num_images": 2}
GRID = (4, 6)
BLOCKS = [f"Transformer/encoderblock_{i}" for i in range(3)]


def tiny_params(**changes):
    shapes = param_shapes(TINY, num_classes=5, num_patches=GRID[0] * GRID[1])
    return unflatten(subject.random_params(shapes, seed=0) | changes)


@pytest.mark.parametrize(
    ("config", "against", "inputs", "drifts_from"),
    [
        (TINY, "timm", ["embedding", "Transformer/posembed_input"], BLOCKS[0]),
        (TINY, "hf", ["embedding", "Transformer/posembed_input"], BLOCKS[0]),
        (TINY | {"classifier": "gap"}, "timm", ["embedding"], BLOCKS[0]),
        (MIXER, "timm", ["stem"], "MixerBlock_0"),
        (HYBRID, "timm", ["conv_root", "embedding"], "conv_root"),
    ],
)
def test_ours_is_the_reference(config, against, inputs, drifts_from):
    found = compare(config, against=against, **SIZES)
    assert found.verdict == found.matched.verdict == "same"
    assert found.matched.first_drift is None
    assert 0 < found.matched.logits.error < 1e-12
    assert found.matched.top1_agreement == 1
    assert 0 < found.matched.logits.noise_float32 < 1e-4
    assert [d.ours for d in found.matched.blocks][: len(inputs)] == inputs
    # As shipped, the difference begins where the first other formula stands, and no earlier.
    assert found.as_shipped.verdict == "differs"
    assert found.as_shipped.first_drift.ours == drifts_from
    assert 1e-5 < found.as_shipped.logits.error < 1e-2
    assert found.as_shipped.logits.error_float32 == pytest.approx(
        found.as_shipped.logits.error, rel=0.1
    )
    assert found.as_shipped.differences[0].what == "GELU"


def compared_by(attend, monkeypatch):
    """ViT-Ti/16, one block of it, against timm; and how often the kernel was taken."""
    taken = []

    def packed(qkv, bias, heads):
        taken.append(qkv.dtype)
        return packed_over_mesh(qkv, bias, heads)

    monkeypatch.setattr(choice, "packed_over_mesh", packed)
    config = resolve("ViT-Ti_16").config.to_dict()
    config["transformer"]["num_layers"] = 1
    with attending(attend):
        found = compare(config, against="timm", num_classes=5, image_size=(48, 80), num_images=2)
    return found, taken


@pytest.mark.parametrize("attend", ["xla", "packed"])
def test_ours_is_timm_with_every_attention(attend, monkeypatch):
    found, taken = compared_by(attend, monkeypatch)
    assert found.verdict == "same"
    assert 0 < max(d.error for d in (*found.matched.blocks, found.matched.logits)) < 1e-12
    assert taken == ([np.float32, np.float64] if attend == "packed" else [])


def test_a_kernel_of_another_scale_is_seen(monkeypatch):
    scale = property(lambda heads: (1 + 1e-6) * heads.width**-0.5)
    monkeypatch.setattr(packed_attention.Heads, "score_scale", scale)
    found, _ = compared_by("packed", monkeypatch)
    assert found.verdict == "differs"
    assert found.matched.first_drift.ours == BLOCKS[0]
    assert found.matched.logits.error > FLOAT64_BAR


@pytest.mark.parametrize(
    ("config", "against"),
    [(TINY, "timm"), (TINY, "hf"), (TINY | {"representation_size": 8}, "hf"), (MIXER, "timm")],
)
def test_features_are_compared_where_there_are_no_classes(config, against):
    found = compare(config, against=against, **SIZES | {"num_classes": 0})
    assert found.verdict == "same"
    assert 0 < found.matched.logits.error < 1e-12


@pytest.mark.parametrize("index", [0, 2])
def test_the_first_block_that_drifts_is_named(monkeypatch, index):
    construct = timm_library.LIBRARY.construct

    def with_another_eps(*args):
        module = construct(*args)
        module.blocks[index].norm2.eps = 1.1e-6
        return module

    library = references.Library("timm", ("timm",), with_another_eps)
    monkeypatch.setattr(timm_library, "LIBRARY", library)
    found = compare(TINY, **SIZES)
    assert found.verdict == "differs"
    assert found.matched.first_drift.ours == BLOCKS[index]
    assert found.matched.first_drift.theirs == f"blocks.{index}"
    # Float32 does not see it: the float64 run is what decides.
    assert found.matched.logits.error_float32 < figures.FLOAT32_BAR


def test_a_linen_module_whose_blocks_are_scanned():
    config = TINY | {"transformer": TINY["transformer"] | {"scan": True}}
    model = from_config(config, num_classes=5)
    found = compare(model, image_size=SIZES["image_size"], num_images=1)
    assert found.verdict == "same"
    assert [d.ours for d in found.matched.blocks][2:-1] == BLOCKS


# --- weights -------------------------------------------------------------------------------------


def test_given_parameters_give_the_figures_of_the_drawn_ones():
    given = compare(TINY, weights=tiny_params(), image_size=(32, 48), num_images=2)
    drawn = compare(TINY, **SIZES)
    assert given.weights == "given"
    assert drawn.weights == "random, seed 0"
    assert given.matched == drawn.matched


@pytest.mark.parametrize("to", ["npz", "safetensors"])
@pytest.mark.parametrize("image_size", [None, (64, 40)])
def test_a_file_at_its_own_size_and_at_another(tmp_path, to, image_size):
    path = tmp_path / f"x.{to}"
    shapes = param_shapes(TINY, num_classes=7, num_patches=36)
    params = unflatten(subject.random_params(shapes, seed=3))
    if to == "npz":
        checkpoint.save(path, params)
    else:
        checkpoint.save_timm(path, params, TINY)
    found = compare(TINY, weights=path, image_size=image_size, num_images=1)
    assert found.verdict == "same"
    assert found.weights == str(path)
    assert found.image_size == (image_size or (48, 48))
    assert [note.startswith("resized from images of") for note in found.notes] == (
        [True] if image_size else []
    )


def test_a_head_of_zeros_hides_nothing():
    zero = {"head/kernel": np.zeros((24, 5)), "head/bias": np.zeros(5)}
    arguments = {"weights": tiny_params(**zero), "image_size": (32, 48), "num_images": 1}
    found = compare(TINY, **arguments)
    assert found.verdict == "same"
    assert found.as_shipped.logits.error == 0
    assert found.as_shipped.verdict == "differs"
    assert "the head is all zero" in found.notes[0]


def test_weights_that_are_not_numbers_prove_nothing():
    broken = tiny_params()
    broken["Transformer"]["encoderblock_1"]["MlpBlock_0"]["Dense_0"]["bias"][3] = np.nan
    found = compare(TINY, weights=broken, image_size=(32, 48), num_images=1)
    assert found.verdict == "differs"
    assert found.matched.first_drift.ours == BLOCKS[1]
    assert "not finite: Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias" in found.notes[0]
    fields = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert fields["verdict"] == "differs"
    assert fields["matched"]["logits"]["error"] is None


def test_random_weights_leave_nothing_at_zero_and_follow_the_seed():
    shapes = param_shapes(TINY, num_classes=5, num_patches=24)
    first, again, other = (subject.random_params(shapes, seed) for seed in (0, 0, 1))
    for name, x in first.items():
        assert np.count_nonzero(x) == x.size
        np.testing.assert_array_equal(x, again[name])
        assert not np.array_equal(x, other[name])


# --- figures -------------------------------------------------------------------------------------


def test_the_error_is_the_largest_difference_over_the_deviation():
    reference = np.array([[1.0, 3.0], [1.0, 3.0]])  # deviation 1
    assert relative_error(reference - np.diag([0, 0.5]), reference) == 0.5
    assert relative_error(reference * 4, reference * 4 + 1) == 0.25
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.ones(3), np.zeros(3)) == np.inf
    for ours, theirs in (([np.nan, 1], [0, 1]), ([0, 1], [np.nan, 1]), ([np.nan], [1.0])):
        assert np.isnan(relative_error(np.array(ours), np.array(theirs)))
    with pytest.raises(ValueError, match=r"ours \(2,\), the reference's \(2, 1\)"):
        relative_error(np.zeros(2), np.zeros((2, 1)))


def test_top1_agreement():
    ours = np.array([[0, 1, 2], [5, 1, 0], [0, 3, 0], [1, 0, 0]])
    theirs = np.array([[0, 1, 9], [5, 6, 0], [0, 3, 0], [1, 0, 0]])
    assert figures.top1_agreement(ours, theirs) == 0.75


@pytest.mark.parametrize(
    ("error", "error32", "noise", "verdict"),
    [
        (1e-14, 1.9e-5, 1e-6, "same"),
        (1e-14, 2.1e-5, 1e-6, "differs"),
        (1e-14, 2.9e-5, 1e-5, "same"),  # the reference is no better
        (1e-14, 3.1e-5, 1e-5, "differs"),
        (FLOAT64_BAR * 1.01, 1e-6, 1e-6, "differs"),
        (float("nan"), 1e-6, 1e-6, "differs"),
        (1e-14, float("nan"), 1e-6, "differs"),
        (1e-14, 1e-6, float("nan"), "same"),
    ],
)
def test_verdicts(error, error32, noise, verdict):
    fine = Drift("a", "b", 1e-15, 1e-15, 1e-7, 1e-7)
    logits = Drift("logits", "logits", error, error, error32, noise)
    assert Setting((), logits, (fine,), 1.0).verdict == verdict
    bad = dataclasses.replace(fine, error=1e-6)
    assert Setting((), logits, (fine, bad, fine), 1.0).verdict == "differs"


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"against": "tim"}, "unknown reference 'tim'. Did you mean 'timm'?"),
        ({"image_size": (32, 50)}, "32×50 (height × width) does not divide into patches of 8×8"),
        ({"image_size": (0, 8)}, "does not divide"),
        ({"model": "ViT-B_17"}, "Did you mean 'ViT-B_16'"),
        ({"model": MIXER, "against": "hf"}, "has no layout 'hf'"),
        ({"model": TINY | {"classifier": "gap"}, "against": "hf"}, "class token"),
        ({"model": TINY | {"representation_size": 8}}, "pre_logits"),
        ({"weights": "no.npz", "num_classes": None}, "no such file or directory 'no.npz'"),
        ({"weights": {}, "num_classes": None}, "no parameters of tiny"),
        ({"weights": {}}, "leave num_classes out"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(UserError) as error:
        compare(**{"model": TINY} | SIZES | arguments)
    assert message in str(error.value)


def test_weights_of_another_model_are_refused(tmp_path):
    checkpoint.save(tmp_path / "x.npz", tiny_params())
    other = TINY | {"transformer": TINY["transformer"] | {"num_layers": 2}}
    with pytest.raises(UserError, match="does not hold this model"):
        compare(other, weights=tmp_path / "x.npz", image_size=(32, 48))
    missing = tiny_params()
    del missing["cls"]
    with pytest.raises(UserError, match="cls"):
        compare(TINY, weights=missing, image_size=(32, 48))


def test_a_mixer_has_one_size():
    shapes = param_shapes(MIXER, num_classes=5, num_patches=24)
    params = unflatten(subject.random_params(shapes, seed=0))
    with pytest.raises(UserError, match="takes images of one size only"):
        compare(MIXER, weights=params, image_size=(64, 64))


@pytest.mark.parametrize(("against", "package"), [("timm", "timm"), ("hf", "transformers")])
def test_without_pytorch_the_message_says_what_to_install(monkeypatch, against, package):
    find = references.importlib.util.find_spec
    monkeypatch.setattr(
        references.importlib.util, "find_spec", lambda p: None if p == package else find(p)
    )
    with pytest.raises(UserError, match=rf'needs {package}.*pip install "vit-jax\[torch\]"'):
        compare(TINY, against=against, **SIZES)


def test_importing_everything_loads_no_framework():
    modules = "comparing figures libraries.hf libraries.timm plot references report subject traces"
    code = (
        f"import sys, importlib; [importlib.import_module('vit_jax.parity.' + m) for m in "
        f"'{modules}'.split()]; sys.exit(', '.join({{'torch', 'timm', 'transformers', 'jax'}} & "
        "set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

"""Directories of transformers: what we write it loads and computes, and the other way round."""

import functools
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from zoo_cases import NUM_CLASSES, Case

from vit_jax import checkpoint
from vit_jax.checkpoint import hf_dir
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import comparable, families, family_of
from vit_jax.models import from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.libraries import hf as library
from vit_jax.parity.traces import trace_ours, trace_torch

TINY = {"hidden_size": 16, "transformer": {"num_layers": 2, "num_heads": 2, "mlp_dim": 24}}
PYRAMID = {"embed_dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4)}
THEIR_TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "layer_norm_eps": 1e-6,
}  # fmt: skip
THEIR_PYRAMID = {
    "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "num_attention_heads": [1, 2, 3, 4],
}  # fmt: skip


class Tiny(NamedTuple):
    """A model of ours and transformers' one with the same fields, in its own words.

    Attributes:
      name, fields: A registered model, and the fields in which this one is another.
      size: (height, width) in pixels.
      theirs, entries: transformers' class, and the entries of its config.
      exact: Whether entries can say our numerics.
    """

    name: str
    fields: dict[str, Any]
    size: tuple[int, int]
    theirs: str
    entries: dict[str, Any]
    exact: bool = True


CASES = {
    "vit": Tiny(
        "ViT-B_16", TINY, (32, 48), "ViTForImageClassification",
        THEIR_TINY | {"image_size": [32, 48], "hidden_act": "gelu_pytorch_tanh"},
    ),
    "deit": Tiny(
        "deit_tiny_patch16_224", TINY, (32, 48), "ViTForImageClassification",
        THEIR_TINY | {"image_size": [32, 48], "hidden_act": "gelu"},
    ),
    "deit_distilled": Tiny(
        "deit_tiny_distilled_patch16_224", TINY, (32, 48), "DeiTForImageClassificationWithTeacher",
        THEIR_TINY | {"image_size": [32, 48]},
    ),
    "swin": Tiny(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4}, (32, 64),
        "SwinForImageClassification",
        {"embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4,
         "image_size": [32, 64]},
    ),
    "levit": Tiny(
        "levit_128s",
        {"hidden_sizes": (16, 24, 32), "num_heads": (1, 2, 3), "depths": (1, 2, 1), "key_dim": 8},
        (64, 64), "LevitForImageClassificationWithTeacher",
        {"hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 3], "depths": [1, 2, 1],
         "key_dim": [8, 8, 8], "image_size": 64},
    ),
    "pvt": Tiny(
        "pvt_tiny", PYRAMID, (32, 32), "PvtForImageClassification",
        THEIR_PYRAMID | {"image_size": 32}, exact=False,
    ),
    "pvt_v2": Tiny(
        "pvt_v2_b0", PYRAMID, (32, 64), "PvtV2ForImageClassification",
        THEIR_PYRAMID | {"image_size": [32, 64]}, exact=False,
    ),
    "pvt_v2_li": Tiny(
        "pvt_v2_b2_li", PYRAMID, (32, 64), "PvtV2ForImageClassification",
        THEIR_PYRAMID | {"image_size": [32, 64], "linear_attention": True}, exact=False,
    ),
    "cvt": Tiny(
        "cvt_13", {"embed_dims": (8, 16, 24), "num_heads": (1, 2, 3), "depths": (1, 2, 3)},
        (28, 36), "CvtForImageClassification",
        {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, exact=False,
    ),
}  # fmt: skip
NAMES = [f"class {i}" for i in range(NUM_CLASSES)]


@functools.cache
def ours(key: str) -> Case:
    this = CASES[key]
    return Case(this.name, this.size, layout="hf", **this.fields)


@pytest.fixture(params=CASES)
def key(request):
    return request.param


@pytest.fixture
def written(key, tmp_path):
    """A directory that we wrote, and what was said of it."""
    this = ours(key)
    recorded = {
        "name": "mine",
        "config": this.config,
        "class_names": NAMES,
        "preprocess": Preprocess(size=max(this.size)).to_dict(),
        "image_size": this.size,
    }
    src = tmp_path / "src.npz"
    checkpoint.save(src, this.variables, metadata={"vit_jax": json.dumps(recorded)})
    return tmp_path / "hf", checkpoint.convert(src, tmp_path / "hf", to="hf")


def loaded(key: str, folder) -> torch.nn.Module:
    """What `from_pretrained` makes of a directory, strictly."""
    cls = getattr(transformers, CASES[key].theirs)
    module, report = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float64)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[what], what
    return module


def logits(module: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    return trace_torch(module, images, [], np.float64, library.LIBRARY.logits_of).logits


def match(module: torch.nn.Module, config: Any) -> None:
    """Our numerics, where no entry says them."""
    library._match(module, config, families()[family_of(config)].layouts["hf"].build)


def computed(config: Any) -> dict[str, Any]:
    """The fields that decide what is computed in evaluation."""
    return comparable(config, "dropout_rate", "attention_dropout_rate")


def tensors(path) -> dict[str, np.ndarray]:
    with open_archive(path) as archive:
        return {name: np.array(archive[name]) for name in archive}


def assert_same(path, other) -> None:
    here, there = tensors(path), tensors(other)
    assert here.keys() == there.keys()
    for name, x in here.items():
        np.testing.assert_array_equal(x, there[name], err_msg=name)
        assert x.dtype == there[name].dtype, name


# --- ours to theirs -------------------------------------------------------------------------------


def test_transformers_computes_what_we_wrote(key, written):
    folder, done = written
    this = ours(key)
    module = loaded(key, folder)
    assert [module.config.id2label[i] for i in range(NUM_CLASSES)] == NAMES
    shipped = relative_error(this.ours64, logits(module, this.images))
    said = [note for note in done.notes if "transformers computes with another" in note]
    assert (shipped <= FLOAT64_BAR, bool(said)) == (CASES[key].exact, not CASES[key].exact)
    match(module, this.config)
    assert relative_error(this.ours64, logits(module, this.images)) <= FLOAT64_BAR
    for part in module.modules():  # LeViT has BatchNorm only
        if hasattr(part, "eps"):
            part.eps *= 10
    assert relative_error(this.ours64, logits(module, this.images)) > FLOAT64_BAR


def test_what_we_wrote_is_read_back(key, written, tmp_path):
    folder, _ = written
    this = ours(key)
    found = checkpoint.identify(folder)
    assert (found.format, found.layout, found.name) == ("hf", "hf", "mine")
    assert comparable(found.config) == comparable(this.config)
    assert found.class_names == NAMES
    back = checkpoint.convert(folder, tmp_path / "back.npz", to="official")
    assert back.model == "mine"
    assert_same(tmp_path / "back.npz", tmp_path / "src.npz")
    with pytest.MonkeyPatch.context() as patch:  # as a directory that somebody else wrote
        patch.setattr("vit_jax.checkpoint.recorded.OURS", "none")
        foreign = checkpoint.identify(folder)
    wanted = this.config | ({"activation": "gelu"} if key == "cvt" else {})
    assert computed(foreign.config) == computed(wanted)
    assert foreign.image_size == this.size or key == "cvt"  # whose config.json tells no size
    assert foreign.class_names == NAMES
    assert foreign.preprocess.resize == "squash"


# --- theirs to ours -------------------------------------------------------------------------------


@functools.cache
def theirs(key: str) -> torch.nn.Module:
    """transformers' model, every number in it random."""
    this = CASES[key]
    cls = getattr(transformers, this.theirs)
    module = cls(cls.config_class(num_labels=NUM_CLASSES, **this.entries)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, x in module.state_dict().items():
            if not x.is_floating_point():
                continue
            noise = torch.randn(x.shape, generator=generator)
            if x.ndim > 1:
                x.copy_(noise / x[0].numel() ** 0.5)
            elif "running_var" in name:
                x.copy_(noise.abs() + 0.5)
            else:
                x.copy_(0.1 * noise + ("weight" in name))
    return module


@pytest.fixture
def saved(key, tmp_path):
    theirs(key).float().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_we_compute_what_transformers_saved(key, saved):
    images = ours(key).images
    facts = checkpoint.identify(saved)
    wanted = ours(key).config | ({"activation": "gelu"} if key == "cvt" else {})
    assert computed(facts.config) == computed(wanted)
    assert (facts.num_classes, facts.class_names) == (NUM_CLASSES, None)
    variables = checkpoint.load(saved)
    variables = variables if "params" in variables else {"params": variables}
    model = from_config(facts.config, num_classes=NUM_CLASSES)
    mine = trace_ours(model, variables, images, [], np.float64).logits
    module = loaded(key, saved)
    exact = CASES[key].exact or key == "cvt"  # which is read as transformers computes
    assert (relative_error(mine, logits(module, images)) <= FLOAT64_BAR) == exact
    match(module, facts.config)
    assert relative_error(mine, logits(module, images)) <= FLOAT64_BAR
    with torch.no_grad():
        next(iter(module.parameters())).mul_(1.001)
    assert relative_error(mine, logits(module, images)) > FLOAT64_BAR


def test_a_round_trip_changes_no_bit(key, saved, tmp_path):
    checkpoint.convert(saved, tmp_path / "x.npz", to="official")
    checkpoint.convert(tmp_path / "x.npz", tmp_path / "again", to="hf")
    assert_same(saved / hf_dir.WEIGHTS, tmp_path / "again" / hf_dir.WEIGHTS)
    live = {name: x.numpy() for name, x in theirs(key).state_dict().items()}
    config = checkpoint.identify(saved).config
    again = checkpoint.to_torch(checkpoint.from_torch(live, config, "hf"), config, "hf")
    for name, x in tensors(saved / hf_dir.WEIGHTS).items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)

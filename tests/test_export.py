"""Models as files of StableHLO and ONNX, which are run and compared with the linen module."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from embedding import write_model
from recipes import GOLDEN
from zoo_cases import config_of
from zoo_table import ROWS

import vit_jax
from vit_jax import cli, export, inference
from vit_jax.checkpoint import names
from vit_jax.checkpoint.facts import Model
from vit_jax.errors import UserError
from vit_jax.export import onnx_file, stablehlo
from vit_jax.export.program import Input, Program
from vit_jax.families.registry import resolve, shrunk
from vit_jax.families.text import Text
from vit_jax.families.towers import text_length
from vit_jax.loaded import of_weights
from vit_jax.parity import subject
from vit_jax.variables import collections

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "export.md"
ONE_LAYER = {"transformer": {"num_layers": 1}}
# What the battery does not have: a ResNet before a Transformer, images of any size, stacked blocks.
EVERY = {key: (row.name, row.size, row.fields) for key, row in ROWS.items()} | {
    "hybrid": ("R26+ViT-S_32", (64, 96), {**ONE_LAYER, "resnet": {"num_layers": (1, 1, 1, 1)}}),
    "naflex": ("naflexvit_base_patch16_siglip", (48, 80), {"num_layers": 1}),
    "scanned": (
        "ViT-Ti_16",
        (48, 80),
        {"transformer": {"num_layers": 2, "scan": True, "remat": True}},
    ),
}
TEXT = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "vocab_size": 177}
QUICK = [("vit", "stablehlo"), ("swin", "stablehlo"), ("hybrid", "onnx"), ("levit", "onnx")]
SLOW = [(key, to) for to in export.FORMATS for key in EVERY if (key, to) not in QUICK]
NAMES_OF_SIGLIP = ("siglip2-base-patch16-256", "siglip2-base-patch16-naflex")
VIT = ("ViT-Ti_16", (32, 48), ONE_LAYER)


def model_of(name, size, fields, num_classes=5):
    """A model with random weights in every parameter."""
    config = config_of(name, **fields)
    made = subject.prepare(config, None, size, num_classes, seed=0)
    known = Model(
        name,
        config,
        num_classes,
        made.image_size,
        dataclasses.replace(resolve(name).preprocess, size=made.image_size),
        [f"class {i}" for i in range(num_classes)] or None,
        licence="mit",
    )
    return of_weights(inference.Weights(known, collections(made.params, names.statistics(config))))


@pytest.fixture(scope="module")
def vit():
    return model_of(*VIT)


def assert_is_the_model(key, to, folder):
    """Compared here, too, with the module as it stands, and another number of images."""
    loaded = model_of(*EVERY[key])
    path = folder / f"{key}{export.FORMATS[to].SUFFIX}"
    done = export.export(loaded, path, to=to)
    assert done.errors.keys() == {"1", "5"}
    assert max(done.errors.values()) <= export.BAR
    images = np.random.default_rng(7).uniform(-1, 1, (2, *EVERY[key][1], 3)).astype(np.float32)
    wanted = jax.jit(functools.partial(loaded.module.apply, train=False))(loaded.variables, images)
    (found,) = run_of(path, to)(images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert np.std(wanted) > 1e-3


def run_of(path, to):
    """What a file computes, told by nothing but what lies beside it."""
    told = json.loads(pathlib.Path(f"{path}.json").read_text())
    inputs = tuple(Input(x["name"], "n", (), x["dtype"]) for x in told["inputs"])
    program = Program("", inputs, tuple(told["outputs"]), lambda *_: (), {})
    return export.FORMATS[to].reader(path, program)


@pytest.mark.parametrize(("key", "to"), QUICK)
def test_a_file_computes_what_the_model_does(key, to, tmp_path):
    assert_is_the_model(key, to, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "to"), SLOW)
def test_every_family_can_be_exported(key, to, tmp_path):
    assert_is_the_model(key, to, tmp_path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks():
    """The Python of the page, by a word that only one block has."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    words = {"stablehlo": "deserialize", "onnx": '"vit.onnx"', "towers": "zimg", "nnx": "ToNNX"}
    return {key: next(b for b in found if word in b) for key, word in words.items()}


@pytest.mark.parametrize("to", ["stablehlo", "onnx"])
def test_pixels_through_the_command_and_the_loader_of_the_page(to, here, capsys):
    weights = write_model(here / "vit.npz")
    file = f"vit{export.FORMATS[to].SUFFIX}"
    argv = ["export", str(weights), file, "--to", to, "--raw"]
    assert cli.main(argv) == 0
    assert "differs by" in capsys.readouterr().out
    told = json.loads((here / f"{file}.json").read_text())
    assert told["sha256"] == hashlib.sha256((here / file).read_bytes()).hexdigest()
    assert told["source"] == str(weights)

    loaded = vit_jax.load(weights)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *told["inputs"][0]["shape"][1:]))
    block = blocks()[to]
    assert "vit_jax" not in block
    block, count = re.subn(r"np\.zeros\(.*\)", "given", block)
    assert count == 1
    space = {"given": pixels.astype(np.uint8)}
    exec(block, space)
    way = loaded.preprocessing
    prepared = (pixels / 255 - np.array(way.mean)) / np.array(way.std)
    wanted = loaded.module.apply(loaded.variables, prepared.astype(np.float32), train=False)
    np.testing.assert_allclose(space["logits"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert space["classes"] == [loaded.class_names[i] for i in wanted.argmax(axis=1)]

    assert cli.main(argv) == 2
    assert "is there already" in capsys.readouterr().err
    assert len(list(here.iterdir())) == 3


def test_two_towers_in_one_file_and_apart(here):
    texts = Text("bert", str(GOLDEN / "lit" / "bert_vocab.txt"), 16)
    towers = vit_jax.load(write_model(here / "lit.npz", "LiT-B16B", texts=texts, text=TEXT))
    export.export(towers, "towers.onnx", to="onnx")
    export.export(towers, "texts.stablehlo", to="stablehlo", what=["text"], batch=4)
    space = {}
    exec(blocks()["towers"], space)
    given = space["given"]
    zimg, ztxt, out = towers.module.apply(towers.variables, given["images"], given["texts"])
    scores = np.asarray(zimg @ ztxt.T) * np.asarray(out["t"])
    np.testing.assert_allclose(space["scores"], scores, rtol=0, atol=1e-4 * np.abs(scores).max())
    (alone,) = run_of("texts.stablehlo", "stablehlo")(given["texts"])
    np.testing.assert_allclose(alone, ztxt, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("to", export.FORMATS)
@pytest.mark.parametrize("name", ["clip-vit-base-patch16", *NAMES_OF_SIGLIP])
def test_every_kind_of_two_towers_can_be_exported(name, to, tmp_path):
    config = resolve(name).config.to_dict()
    texts = Text("bert", "", text_length(config))
    towers = vit_jax.load(write_model(tmp_path / "a.npz", name, texts=texts, **shrunk(config)))
    done = export.export(towers, tmp_path / f"a{export.FORMATS[to].SUFFIX}", to=to)
    assert done.description["outputs"] == ["features", "text"]
    assert max(done.errors.values()) <= export.BAR


def test_the_module_within_nnx(here):
    write_model(here / "vit.npz")
    space = {}
    exec(blocks()["nnx"], space)
    loaded, way = space["loaded"], space["loaded"].preprocessing
    images = np.random.default_rng(0).uniform(-1, 1, (2, *way.height_width, 3)).astype(np.float32)
    wanted = loaded.module.apply(loaded.variables, images, train=False)
    found = space["forward"](space["model"], images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_file_of_other_numbers_is_not_kept(vit, tmp_path, monkeypatch):
    written = stablehlo.written

    def of_other_weights(program):
        other = jax.tree.map(lambda x: x * 1.001, program.variables)
        return written(dataclasses.replace(program, variables=other))

    monkeypatch.setattr(stablehlo, "written", of_other_weights)
    with pytest.raises(UserError, match="computes something else"):
        export.export(vit, tmp_path / "vit.stablehlo", to="stablehlo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dst", "how", "said"),
    [
        ("a.onnx", {"to": "onx"}, "Did you mean 'onnx'"),
        ("a.bin", {"to": "onnx"}, r"writes \.onnx files"),
        ("a.stablehlo", {"to": "stablehlo", "what": ["logit"]}, "Did you mean 'logits'"),
        ("a.stablehlo", {"to": "stablehlo", "what": ["logits", "logits"]}, "named once"),
        ("a.stablehlo", {"to": "stablehlo", "what": ["text"]}, "takes no texts"),
        ("a.stablehlo", {"to": "stablehlo", "batch": 0}, "at least"),
        ("no/a.stablehlo", {"to": "stablehlo"}, "cannot write"),
    ],
)
def test_bad_input_is_said(dst, how, said, vit, tmp_path):
    with pytest.raises(UserError, match=said):
        export.export(vit, tmp_path / dst, **how)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs flatbuffers.*pip install "vit-jax\[export\]"'):
        export.check(tmp_path / "a.stablehlo", "stablehlo")


def test_a_model_for_one_number_of_images_says_so():
    def halves(variables, x):
        return (x[: int(x.shape[0])],)

    program = Program("halves", (Input("images", "n", (2,), "float32"),), ("logits",), halves, {})
    with pytest.raises(UserError, match="--batch N exports it for a number"):
        program.specs()
    fixed = dataclasses.replace(program, batch=4)
    assert fixed.specs()[0].shape == (4, 2)
    assert export.compared(fixed, lambda x: (x,)) == {"4": 0.0}


def test_what_the_converter_cannot_do_is_said():
    def inverse(variables, x):
        return (jax.numpy.linalg.eigh(x)[1],)

    program = Program("other", (Input("images", "n", (2, 2), "float32"),), ("logits",), inverse, {})
    with pytest.raises(UserError, match="--to stablehlo can"):
        onnx_file.written(program)

"""Files of two towers: the whole, one of them, and BERT to and from transformers."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from vit_jax import checkpoint
from vit_jax.checkpoint import convert, identify, names, recognise, recorded
from vit_jax.checkpoint.files.formats import write_npz
from vit_jax.configs.models import MODEL_CONFIGS
from vit_jax.errors import UserError
from vit_jax.families.registry import comparable, config_of, get, registered, resolve, shrunk
from vit_jax.families.text import Text
from vit_jax.models import from_config, get_model
from vit_jax.parity import compare
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.subject import random_inputs, random_params
from vit_jax.parity.traces import trace_ours, trace_torch
from vit_jax.tree import arrays, unflatten

LIT = [name for name in MODEL_CONFIGS if name.startswith("LiT")]
TEXT = Text("bert", "vocab.txt", 8)


def shapes_of(name):
    config = config_of(name)
    return names.expected_shapes(config, num_classes=0, image_size=(224, 224))


# --- recognition ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIT)
def test_names_and_shapes_tell_every_released_model(name):
    assert [c.name for c in recognise.of_tensors(shapes_of(name))] == [name]


@pytest.mark.parametrize(
    ("name", "branch", "part"),
    [
        ("LiT-B16B", "img", "ViT-B_16"),
        ("LiT-B16B_2", "txt", "bert_base"),
        ("LiT-L16L", "txt", "bert_large"),
        ("LiT-L16S", "txt", "text_transformer_S"),
        ("LiT-L16Ti", "txt", "text_transformer_Ti"),
    ],
)
def test_a_branch_has_the_tensors_of_its_tower(name, branch, part):
    before = f"{branch}/"
    shapes = {n.removeprefix(before): s for n, s in shapes_of(name).items() if n.startswith(before)}
    found = recognise.of_model(get(config_of(name)).parts(config_of(name))[branch], shapes)
    assert found.name == part


@pytest.mark.parametrize("gone", ["t", "img/cls", "txt/head/bias"])
def test_a_file_that_lacks_a_tensor_is_no_model(gone):
    shapes = shapes_of("LiT-B16B")
    del shapes[gone]
    assert recognise.of_tensors(shapes) == []


# --- a file of a tiny model -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["LiT-B16B", "LiT-L16S"])
def config(request):
    found = shrunk(config_of(request.param))
    return {**found, "model_name": "tiny", "pp": {**found["pp"], "size": 64, "max_len": 8}}


@pytest.fixture(scope="module")
def flat(config):
    return random_params(names.expected_shapes(config, num_classes=0, image_size=(64, 64)), seed=0)


@pytest.fixture
def file(config, flat, tmp_path):
    images = resolve("LiT-B16B").preprocess
    told = recorded.described("tiny", config, images, None, (64, 64), TEXT)
    path = tmp_path / "tiny.npz"
    metadata = {recorded.OURS: json.dumps(told)}
    checkpoint.save(path, unflatten(flat), model=config, metadata=metadata)
    return path


def assert_same(tree, wanted):
    got = arrays(tree)
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name)


def below(flat, branch):
    return {n.removeprefix(f"{branch}/"): x for n, x in flat.items() if n.startswith(f"{branch}/")}


@pytest.mark.parametrize("to", ["official", "orbax"])
def test_the_whole_goes_there_and_back(file, config, flat, to, tmp_path):
    there, back = tmp_path / ("there.npz" if to == "official" else "there"), tmp_path / "back.npz"
    convert(file, there, to=to)
    convert(there, back, to="official")
    found = identify(back)
    assert found.layout == "linen"  # the original's loader renames nothing in it
    assert comparable(found.config) == comparable(config)
    assert (found.text, found.image_size) == (TEXT, (64, 64))
    assert_same(checkpoint.load(back), flat)


def test_a_tree_without_a_word_is_saved_as_it_is(flat, tmp_path):
    checkpoint.save(tmp_path / "x.npz", unflatten(flat))
    with np.load(tmp_path / "x.npz") as archive:
        assert set(archive) - {"__vit_jax__"} >= set(flat)


def test_the_towers_are_sets_of_weights(file, config, flat):
    for branch in ("img", "txt"):
        found = identify(file, part=branch)
        part = get(config).parts(config)[branch]
        assert comparable(found.config) == comparable(part)
        assert found.text == (TEXT if branch == "txt" else None)
        assert found.image_size == ((64, 64) if branch == "img" else None)
        assert_same(checkpoint.load(file, part=branch), below(flat, branch))
    assert "the weights 'img' are read, not 't', 'txt'" in identify(file, part="img").notes
    with pytest.raises(UserError, match=r"no (weights )?'text'"):
        identify(file, part="text")


@pytest.mark.parametrize(
    ("to", "name"), [("timm", "x.safetensors"), ("hf", "x"), ("official", "x.npz")]
)
def test_the_image_tower_leaves_and_comes_back(file, config, flat, to, name, tmp_path):
    convert(file, tmp_path / name, to=to, part="img")
    found = identify(tmp_path / name)
    assert comparable(found.config) == comparable(config["image"])
    params = checkpoint.load(file)
    params["img"] = checkpoint.load(tmp_path / name)
    assert_same(params, flat)


def test_the_whole_has_no_place_in_other_libraries(file, tmp_path):
    for to, name in (("timm", "x.safetensors"), ("hf", "x")):
        with pytest.raises(UserError, match=f"has no layout '{to}'; it has official"):
            convert(file, tmp_path / name, to=to)
        assert not (tmp_path / name).exists()


# --- BERT -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert():
    return shrunk(config_of("bert_base"))


def test_bert_is_transformers(bert):
    found = compare(bert, against="hf", num_classes=0)
    assert found.matched.logits.error <= FLOAT64_BAR
    assert found.as_shipped.logits.error > 1000 * FLOAT64_BAR  # with GELU in its erf form


@pytest.mark.parametrize("config", ["LiT-B16B"], indirect=True)
def test_a_tower_goes_to_transformers_without_its_head(file, config, flat, tmp_path):
    with pytest.raises(UserError, match=r"has no linear head .*--num-classes 0"):
        convert(file, tmp_path / "hf", to="hf", part="txt")
    report = convert(file, tmp_path / "hf", to="hf", part="txt", num_classes=0)
    assert any("no pooler is written" in step for step in report.steps)
    module = transformers.BertModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False)
    tower = {n: x for n, x in below(flat, "txt").items() if not n.startswith("head")}
    part = get(config).parts(config)["txt"]
    assert_equal_function(part, unflatten(tower), module)
    assert_same(checkpoint.load(tmp_path / "hf"), tower)


def assert_equal_function(config, params, module):
    tokens = random_inputs(config, (0, 0), 4, seed=1)
    ours = trace_ours(from_config(config), {"params": params}, tokens, [], np.float64)
    theirs = trace_torch(module, tokens, [], np.float64, lambda x: x.last_hidden_state[:, 0])
    assert relative_error(ours.logits, theirs.logits) <= FLOAT64_BAR


def their_bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(
        **sizes, intermediate_size=64, vocab_size=50, hidden_act="gelu_pytorch_tanh"
    )
    module = transformers.BertModel(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def test_transformers_bert_comes_here_without_its_pooler(tmp_path):
    module = their_bert()
    module.save_pretrained(tmp_path)
    report = convert(tmp_path, tmp_path / "out.npz", to="official")
    assert any("without a pooler" in step for step in report.steps)
    found = identify(tmp_path / "out.npz")
    assert found.config["num_heads"] == 4
    assert_equal_function(found.config, checkpoint.load(tmp_path / "out.npz"), module)


def test_names_of_old_files(tmp_path):
    """With a prefix, heads of other tasks, and norms called as in TensorFlow."""
    module = their_bert()
    module.save_pretrained(tmp_path)
    state = {n: x.numpy() for n, x in module.state_dict().items()}
    spelled = {
        "bert." + n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x
        for n, x in state.items()
    }
    spelled["cls.seq_relationship.weight"] = np.ones((2, 32), np.float32)
    new = checkpoint.load(tmp_path)
    safetensors.numpy.save_file(spelled, tmp_path / "model.safetensors")
    assert_same(checkpoint.load(tmp_path), arrays(new))


# --- the original's methods -----------------------------------------------------------------------


def test_variables_come_from_the_current_folder(config, flat, file, monkeypatch):
    monkeypatch.chdir(file.parent)
    variables = from_config(config).load_variables()
    assert variables.keys() == {"params"}
    assert_same(variables["params"], flat)
    assert_same(from_config(config).load_variables("tiny.npz")["params"], flat)


def test_a_tower_that_is_scanned_gets_its_blocks_stacked(config, file):
    image = {**config["image"], "transformer": {**config["image"]["transformer"], "scan": True}}
    model = from_config({**config, "image": image})
    inputs = np.ones((1, 64, 64, 3), np.float32), np.ones((1, 8), np.int32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    got = arrays(model.load_variables(file)["params"])
    assert {n: x.shape for n, x in got.items()} == {n: x.shape for n, x in arrays(wanted).items()}


def test_without_a_file_they_are_fetched(monkeypatch, tmp_path):
    asked, whole = [], {"img": {}, "txt": {}}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "load", lambda path, model: asked.append(path) or whole)
    get_model("LiT-B16B").load_variables()
    assert asked == ["gs://vit_models/lit/LiT-B16B.npz"]


def test_a_file_of_another_model_is_refused(config, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not hold"):
        get_model("LiT-B16B").load_variables(file)


def test_where_vocabularies_lie():
    assert get_model("LiT-B16B").vocab_path == "gs://vit_models/lit/LiT-B16B.txt"
    assert get_model("LiT-L16S").vocab_path == "gs://vit_models/lit/LiT-L16S.model"
    for name in LIT:
        text = registered()[name].weights.text
        assert text is not None
        assert (text.vocabulary, text.length) == (get_model(name).vocab_path, 16)


def test_a_model_that_does_not_say_how_texts_are_prepared(config):
    with pytest.raises(UserError, match="give it `pp`"):
        from_config({**config, "pp": None}).get_tokenizer()


def test_texts_that_are_recorded_wrongly_are_said(config, flat, tmp_path):
    told = recorded.described("tiny", config, resolve("LiT-B16B").preprocess, None, (64, 64))
    told["text"] = {"kind": "bert", "length": "16"}
    write_npz(tmp_path / "x.npz", flat, {recorded.OURS: json.dumps(told)})
    assert "is damaged and not used" in " ".join(identify(tmp_path / "x.npz", config).notes)

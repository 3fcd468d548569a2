"""The towers and the whole of LiT against figures of the original code (tests/golden/lit)."""

import functools
import hashlib
import shutil

import jax
import numpy as np
import pytest
from flax import linen as nn
from recipes import GOLDEN, flatten, golden_json, random_images, random_params, sha256

from vit_jax.checkpoint import names
from vit_jax.configs.models import MODEL_CONFIGS
from vit_jax.errors import UserError
from vit_jax.evaluate.predictions import softmax
from vit_jax.families.registry import config_of, shrunk
from vit_jax.layers.attention.choice import attending
from vit_jax.layers.block import vit_block
from vit_jax.layers.norm import LayerNorm5
from vit_jax.models import bert, from_config, text_transformer

pytestmark = pytest.mark.promotes  # float64, in which Flax's norms promote

SHAPES = golden_json("lit/shapes.json")
CASES = golden_json("lit/cases.json")
FIGURES = {f: np.load(GOLDEN / "lit" / f"{f}.npz") for f in ("float32", "float64")}
BARS = {"float32": 1e-5, "float64": 1e-9}

SMALL = {"num_layers": 2, "num_heads": 4, "mlp_dim": 64}
TEXT = {
    "bert": {**SMALL, "hidden_size": 32, "vocab_size": 50, "max_length": 12},
    "text_transformer": {**SMALL, "width": 32, "vocab_size": 50},
}
IMAGE = {
    "patches": {"size": (8, 8)},
    "hidden_size": 32,
    "transformer": {**SMALL, "dropout_rate": 0.0, "attention_dropout_rate": 0.0},
    "classifier": "token",
    "representation_size": None,
}


def model_of(case):
    text = "text_transformer" if "text_transformer" in case else "bert"
    if case.startswith("lit"):
        config = {"image": IMAGE, "text_model": text, "text": TEXT[text]}
        return from_config({**config, "out_dim": tuple(CASES[case]["out_dim"])})
    return from_config({"family": text, **TEXT[text]}, num_classes=24 if "head24" in case else 0)


def inputs_of(case):
    tokens = FIGURES["float32"][f"{case}/tokens"]
    return (random_images((2, 24, 24, 3)), tokens) if case.startswith("lit") else (tokens,)


def params_of(case):
    """As the figures were made, whatever length of text the case has."""
    model, inputs = model_of(case), inputs_of(case)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return random_params({name: leaf.shape for name, leaf in flatten(shapes).items()}, scale=0.2)


def named(output):
    """The outputs by the names that the figures have."""
    if len(output) == 3:
        zimg, ztxt, out = output
        found = {"zimg": zimg, "ztxt": ztxt, **{f"out/{name}": x for name, x in out.items()}}
        if zimg.shape == ztxt.shape:
            found["probs_text_over_images"] = softmax(out["t"] * ztxt @ zimg.T)
        return found
    return {"y": output[0], **output[1]}


def computed(case, dtype, params=None, platform=None):
    params = params_of(case) if params is None else params
    with jax.enable_x64(dtype == "float64"), attending("auto", platform=platform):
        cast = functools.partial(np.asarray, dtype=dtype)
        inputs = [x if x.dtype == np.int32 else cast(x) for x in inputs_of(case)]
        # Another function each time: what a test changes in the code must be traced anew.
        apply = jax.jit(lambda *args: model_of(case).apply(*args))
        return named(jax.device_get(apply({"params": jax.tree.map(cast, params)}, *inputs)))


def errors(case, found, dtype):
    """Output -> the largest difference over the largest figure, of what must be equal.

    What fills a text up attends by scores that -1e10 has rounded, the same way in float32 only.
    """
    figures = {
        name.removeprefix(f"{case}/"): wanted
        for name, wanted in FIGURES[dtype].items()
        if name.startswith(f"{case}/") and not name.endswith("/tokens")
    }
    assert figures.keys() == found.keys()
    tokens = FIGURES["float32"][f"{case}/tokens"]
    whole = tokens[:, 0] != 0
    result = {}
    for name, wanted in figures.items():
        difference = np.abs(found[name] - wanted)
        if dtype == "float64" and name.endswith("transformed"):
            difference = difference[tokens != 0]
        elif dtype == "float64" and len(wanted) == len(tokens):
            difference = difference[whole]
        result[name] = difference.max() / np.abs(wanted).max()
    return result


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_originals(case, dtype):
    params = params_of(case)
    assert sha256(params) == CASES[case]["params_sha256"]
    found = errors(case, computed(case, dtype, params), dtype)
    assert max(found.values()) <= BARS[dtype], found


def test_accelerators_programs_compute_the_same():
    case = "lit_bert_24_24"
    found = errors(case, computed(case, "float32", platform="tpu"), "float32")
    assert max(found.values()) <= BARS["float32"], found


def _other_gelu(monkeypatch):
    monkeypatch.setattr(bert.nn, "gelu", functools.partial(nn.gelu, approximate=False))
    monkeypatch.setattr(text_transformer, "google_block", vit_block)


def _other_eps(monkeypatch):
    monkeypatch.setattr(bert, "LayerNorm12", functools.partial(nn.LayerNorm, epsilon=1e-6))
    block = functools.partial(vit_block, norm=LayerNorm5, activation=nn.gelu)
    monkeypatch.setattr(text_transformer, "google_block", block)


def _no_mask(monkeypatch):
    monkeypatch.setattr(bert, "padding_bias", lambda tokens: np.zeros((1, 1, 1, 1)))


def _no_segment(monkeypatch):
    embed = bert.nn.Embed.__call__

    def without(self, ids):
        return embed(self, ids) * (self.name != "embedders_segment_ids")

    monkeypatch.setattr(bert.nn.Embed, "__call__", without)


TOWERS = ("bert_head24_L12", "text_transformer_head24_L12")


@pytest.mark.parametrize(
    ("case", "change"),
    [
        *((case, change) for case in TOWERS for change in (_other_gelu, _other_eps)),
        *((TOWERS[0], change) for change in (_no_mask, _no_segment)),
    ],
)
def test_another_function_is_seen(case, change, monkeypatch):
    params = params_of(case)
    change(monkeypatch)
    assert errors(case, computed(case, "float64", params), "float64")["y"] > 1000 * BARS["float64"]


@pytest.mark.parametrize("name", SHAPES)
def test_names_shapes_and_counts_are_the_originals(name):
    # That the module has these shapes, tests/families/test_sizes.py tells.
    shapes = names.expected_shapes(config_of(name), num_classes=0, image_size=(224, 224))
    text = "\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    golden = SHAPES[name]
    assert hashlib.sha256(text.encode()).hexdigest() == golden["shapes_sha256"]
    assert sum(int(np.prod(s)) for s in shapes.values()) == golden["count"]


def test_every_configuration_has_figures():
    assert {name for name in MODEL_CONFIGS if name.startswith("LiT")} == set(SHAPES)


# --- how it is called ---


@pytest.fixture(scope="module")
def tiny():
    return shrunk(config_of("LiT-B16B"))


def test_a_tower_alone():
    case = "lit_bert_24_24"
    model, params = model_of(case), {"params": params_of(case)}
    images, tokens = inputs_of(case)
    zimg, nothing, out = jax.eval_shape(lambda: model.apply(params, images=images))
    assert (zimg.shape, nothing, set(out)) == ((2, 24), None, {"img/norm", "img/normalized", "t"})
    nothing, ztxt, out = jax.eval_shape(lambda: model.apply(params, tokens=tokens))
    assert (ztxt.shape, nothing) == ((2, 24), None)
    assert not any(name.startswith("img/") for name in out)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [({}, {"t": 1.0}), ({"temperature_init": 10.0, "bias_init": -2.71}, {"t": 10.0, "b": -2.71})],
)
def test_temperature_and_bias_begin_as_told(tiny, fields, wanted):
    model = from_config({**tiny, **fields})
    tokens = np.ones((1, 4), np.int32)

    @jax.jit
    def begin(key):
        (_, _, out), _ = model.init_with_output(key, tokens=tokens)
        return {name: x for name, x in out.items() if "/" not in name}

    scalars = begin(jax.random.key(0))
    assert scalars.keys() == wanted.keys()
    for name, value in wanted.items():
        assert scalars[name].shape == (1,)
        np.testing.assert_allclose(scalars[name], value, rtol=1e-6)


def test_dropout_of_texts_is_dropout():
    config = {"family": "bert", **TEXT["bert"], "dropout_rate": 0.5, "attention_dropout_rate": 0.5}
    model, tokens = from_config(config), inputs_of("bert_nohead_L12")[0]

    @jax.jit
    def run(params, key):
        return model.apply({"params": params}, tokens, train=True, rngs={"dropout": key})[0]

    params = params_of("bert_nohead_L12")
    first, again, other = (run(params, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_ids_that_the_vocabulary_lacks_are_the_nearest():
    params = {"params": params_of("bert_nohead_L12")}
    apply = jax.jit(lambda tokens: model_of("bert_nohead_L12").apply(params, tokens)[0])
    within, beyond = np.full((1, 12), 49, np.int32), np.full((1, 12), 50, np.int32)
    np.testing.assert_array_equal(apply(within), apply(beyond))


@pytest.mark.parametrize(
    ("case", "tokens", "message"),
    [
        (
            "bert_nohead_L12",
            np.ones((2, 13), np.int32),
            "expected texts of up to 12 tokens, got 13",
        ),
        ("bert_nohead_L12", np.ones((2, 12), np.float32), "expected integer tokens [N, length]"),
        ("bert_nohead_L12", np.ones(12, np.int32), "add the axis of the batch, tokens[None]"),
        ("bert_nohead_L12", np.ones((0, 12), np.int32), "expected at least one text"),
        (
            "text_transformer_head24_L12",
            np.ones((2, 7), np.int32),
            "expected texts of 12 tokens, as the parameters are for, got 7",
        ),
    ],
)
def test_tokens_that_do_not_fit(case, tokens, message):
    model, params = model_of(case), {"params": params_of(case)}
    with pytest.raises(UserError) as error:
        jax.eval_shape(lambda: model.apply(params, tokens))
    assert message in str(error.value)


def test_neither_images_nor_tokens(tiny):
    with pytest.raises(UserError, match="expected images, tokens, or both; got neither"):
        from_config(tiny).init(jax.random.key(0))


def test_classes_are_not_its_matter(tiny):
    with pytest.raises(UserError, match=r"LiT has no classes.* `vit-jax zeroshot`"):
        from_config(tiny, num_classes=10)


def test_the_originals_methods_prepare_images_and_texts(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOLDEN / "lit" / "bert_vocab.txt", "LiT-B16B.txt")
    model = from_config({**tiny, "pp": {**tiny["pp"], "size": 64, "max_len": 8}})
    photo = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    prepared = model.get_pp()({"image": photo, "text": "a cat"})
    tokens = model.get_tokenizer()(["a cat"])
    assert tokens.shape == (1, 8)
    np.testing.assert_array_equal(prepared["tokens"], tokens[0])
    images = model.get_image_preprocessing()([photo])
    assert images.shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(prepared["image"], images[0])

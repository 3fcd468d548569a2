"""CLIP's towers against transformers, in float64, with what must be seen to differ."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from vit_jax.checkpoint import from_torch, names, to_torch
from vit_jax.checkpoint.io import as_scanned
from vit_jax.errors import UserError
from vit_jax.families.registry import config_of
from vit_jax.families.resize import resize_posembed
from vit_jax.models import clip, from_config
from vit_jax.parity import references
from vit_jax.parity.figures import FLOAT32_BAR, FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours, trace_torch
from vit_jax.tree import arrays, unflatten
from vit_jax.variables import named

pytestmark = pytest.mark.promotes  # float64, in which Flax's norms promote

SIZES = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96}
VOCABULARY, LENGTH, SIDE, WIDTH = 64, 12, 64, 24
END = VOCABULARY - 1
GRID = SIDE // 16, SIDE // 16
POSITIONS = "posembed_input/pos_embedding"


def config_with(activation: str, **fields) -> dict:
    tower = {**SIZES, "activation": activation, **fields}
    image = {"family": "clip_vision", "patch_size": 16, **tower}
    text = {**tower, "vocab_size": VOCABULARY, "max_length": LENGTH}
    both = {"image": image, "text_model": "clip_text", "text": text, "out_dim": WIDTH}
    return {"family": "clip", **both}


def random_params(config) -> dict[str, np.ndarray]:
    """Numbers as large as trained ones: small ones would hide what they multiply."""
    shapes = names.expected_shapes(config, num_classes=0, image_size=(SIDE, SIDE))
    rng, found = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape)
        if name.endswith("kernel"):
            inputs = shape[:1] if name.split("/")[-2] in ("query", "key", "value") else shape[:-1]
            found[name] = x / np.sqrt(np.prod(inputs))
        elif name.endswith("scale"):
            found[name] = 1 + 0.2 * x
        else:
            found[name] = (0.2 if name.endswith("bias") else 0.5) * x
    return {name: x.astype(np.float32) for name, x in found.items()}


class Towers:
    """Both sides with the same weights, and what they compute of six images and five texts."""

    def __init__(self, activation: str):
        self.config = config_with(activation)
        self.params = random_params(self.config)
        self.variables = {"params": unflatten(self.params)}
        self.model = from_config(self.config)
        rng = np.random.default_rng(1)
        self.tokens = rng.integers(1, END, (5, LENGTH), np.int32)
        for row, end in zip(self.tokens, (7, 4, 2, 9, 6), strict=True):
            row[end] = END
            # Filled up as OpenAI does, and as transformers does.
            row[end + 1 :] = 0 if end % 2 else END
        self.images = rng.standard_normal((6, SIDE, SIDE, 3))
        library = references.get("hf")
        state = to_torch(self.variables, self.config, "hf")
        sizes = {"num_classes": 0, "image_size": (SIDE, SIDE)}
        self.module = library.build(self.config, state, matched=True, **sizes).double()
        self.logits_of = library.logits_of
        self.points = library.points(self.config, self.module)
        self.ours = self.trace(np.float64)
        self.theirs = self.trace_theirs(self.module)

    @property
    def inputs(self):
        return {"images": self.images, "tokens": self.tokens}

    def trace(self, dtype):
        blocks = [point.ours for point in self.points]
        return trace_ours(self.model, self.variables, self.inputs, blocks, dtype)

    def trace_theirs(self, module):
        blocks = [point.theirs for point in self.points]
        return trace_torch(module, self.inputs, blocks, np.float64, self.logits_of)

    def error(self, change) -> float:
        """How far the scores are from those of a changed reference."""
        module = copy.deepcopy(self.module)
        change(module)
        return relative_error(self.trace_theirs(module).logits, self.ours.logits)

    def text(self, tokens, config=None) -> np.ndarray:
        """Our embeddings of texts."""
        model = self.model if config is None else from_config(config)
        with jax.enable_x64(True):
            variables = jax.tree.map(lambda x: np.asarray(x, np.float64), self.variables)
            apply = jax.jit(lambda variables, tokens: model.apply(variables, tokens=tokens)[1])
            return np.asarray(apply(variables, np.asarray(tokens, np.int32)))


def unit(x: torch.Tensor) -> np.ndarray:
    return (x / x.norm(dim=1, keepdim=True)).numpy()


@pytest.fixture(scope="module")
def quick():
    return Towers("quick_gelu")


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def towers(request, quick):
    return quick if request.param == "quick_gelu" else Towers(request.param)


def test_every_block_and_the_scores_are_transformers(towers):
    assert towers.ours.logits.shape == (6, 5)
    assert len(towers.points) == 5  # two blocks a tower, and the norm after the text's
    for ours, theirs in zip(towers.ours.outputs, towers.theirs.outputs, strict=True):
        assert relative_error(theirs, ours) <= FLOAT64_BAR


def test_float32_and_bfloat16_are_near(quick):
    for ours, theirs in zip(quick.trace(np.float32).outputs, quick.theirs.outputs, strict=True):
        assert relative_error(theirs, ours) <= FLOAT32_BAR
    model = from_config({**quick.config, "dtype": jnp.bfloat16})
    images = quick.images.astype(np.float32)
    low = jax.jit(lambda *x: model.apply(*x)[:2])(quick.variables, images, quick.tokens)
    with torch.no_grad():
        wide = quick.module(
            input_ids=torch.from_numpy(quick.tokens),
            pixel_values=torch.from_numpy(quick.images).permute(0, 3, 1, 2),
        )
    for near, x in zip(low, (wide.image_embeds, wide.text_embeds), strict=True):
        assert near.dtype == jnp.float32
        assert 1e-4 < relative_error(x.numpy(), np.asarray(near)) < 0.1


# --- what must be seen ----------------------------------------------------------------------------


def activation(name):
    def change(module):
        parts = [part for part in module.modules() if hasattr(part, "activation_fn")]
        assert len(parts) == 4
        for part in parts:
            part.activation_fn = ACT2FN[name]

    return change


def no_norm_before(module):
    module.vision_model.pre_layrnorm = torch.nn.Identity()


def other_eps(module):
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = 1e-6


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (activation("gelu"), 2e-2),
        (activation("gelu_pytorch_tanh"), 2e-2),
        (no_norm_before, 0.5),
        (other_eps, 1e-5),
    ],
    ids=["erf", "tanh", "no_norm_before", "eps"],
)
def test_another_formula_is_seen(quick, change, least):
    assert quick.error(change) > least


def test_a_text_is_read_at_its_first_end_and_no_token_sees_what_follows(quick, monkeypatch):
    wanted = quick.text(quick.tokens)
    with torch.no_grad():
        tokens = torch.from_numpy(quick.tokens)
        theirs = quick.module.get_text_features(input_ids=tokens).pooler_output
        tower = quick.module.text_model(input_ids=tokens).last_hidden_state
        last = quick.module.text_projection(tower[:, -1])
    assert relative_error(unit(theirs), wanted) <= FLOAT64_BAR
    assert relative_error(unit(last), wanted) > 1.5
    after = np.arange(LENGTH) > np.argmax(quick.tokens, axis=1)[:, None]
    np.testing.assert_array_equal(quick.text(np.where(after, 5, quick.tokens)), wanted)
    assert relative_error(wanted, quick.text(quick.tokens[:, :10])) <= 1e-13  # of 10 tokens
    monkeypatch.setattr(clip, "causal_bias", lambda length: jnp.zeros((1, 1, length, length)))
    assert relative_error(wanted, quick.text(quick.tokens)) > 0.1


def test_an_end_that_is_not_the_largest_number(quick):
    config = {**quick.config, "text": {**quick.config["text"], "end": 3}}
    tokens = np.where(quick.tokens == END, 3, quick.tokens)
    tokens[:, 9] = END  # after the end
    module = copy.deepcopy(quick.module)
    module.text_model.eos_token_id = 3
    with torch.no_grad():
        theirs = module.get_text_features(input_ids=torch.from_numpy(tokens)).pooler_output
    assert relative_error(unit(theirs), quick.text(tokens, config)) <= FLOAT64_BAR


@pytest.mark.parametrize("size", [(48, 96), (96, 32)])
def test_other_images_with_positions_as_transformers_resizes_them(quick, size):
    """Images that are not square, with rows or columns more or fewer than the weights'."""
    before = {n.removeprefix("img/"): x for n, x in quick.params.items() if n.startswith("img/")}
    images = np.random.default_rng(2).uniform(-1, 1, (2, *size, 3))
    model = from_config(quick.config["image"], num_classes=WIDTH)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        theirs = quick.module.get_image_features(pixels, interpolate_pos_encoding=True)

    def error(method: str) -> float:
        table = before[POSITIONS].astype(np.float64)
        table = resize_posembed(table, GRID, (size[0] // 16, size[1] // 16), 1, method)
        variables = {"params": unflatten({**before, POSITIONS: table})}
        ours = trace_ours(model, variables, images, [], np.float64).logits
        return relative_error(theirs.pooler_output.numpy(), ours)

    assert error("bicubic") <= FLOAT64_BAR
    assert error("timm") > 1e-2


# --- the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["hf", "torch"])
def test_names_both_ways(quick, layout):
    state = to_torch(quick.variables, quick.config, layout)
    assert state["logit_scale"].shape == ()
    flat = arrays(named(from_torch(state, quick.config, layout)))
    assert flat.keys() == quick.params.keys()
    for name, x in flat.items():
        np.testing.assert_array_equal(x, quick.params[name], err_msg=name)


@pytest.mark.parametrize("num_classes", [0, WIDTH])
@pytest.mark.parametrize(
    ("branch", "layout", "cls"),
    [
        ("img", "hf", "CLIPVisionModel"),
        ("img", "torch", None),
        ("img", "timm", None),
        ("txt", "hf", "CLIPTextModel"),
        ("txt", "torch", None),
    ],
)
def test_names_of_a_tower_both_ways(quick, branch, layout, cls, num_classes):
    """With its projection and without; transformers' classes take the names strictly."""
    config = {"img": quick.config["image"], "txt": {"family": "clip_text", **quick.config["text"]}}
    before = f"{branch}/"
    flat = {n.removeprefix(before): x for n, x in quick.params.items() if n.startswith(before)}
    flat = {n: x for n, x in flat.items() if num_classes or not n.startswith("head")}
    state = to_torch({"params": unflatten(flat)}, config[branch], layout)
    back = arrays(named(from_torch(state, config[branch], layout)))
    assert back.keys() == flat.keys()
    for name, x in back.items():
        np.testing.assert_array_equal(x, flat[name], err_msg=name)
    if cls is not None:
        sizes = {"num_classes": num_classes, "image_size": (SIDE, SIDE)}
        module = references.get("hf").build(config[branch], state, matched=True, **sizes)
        assert type(module).__name__ == cls + ("WithProjection" if num_classes else "")


def test_scanned_and_recomputed_blocks_give_the_same(quick):
    config = config_with("quick_gelu", scan=True, remat=True)
    model = from_config(config)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), quick.variables["params"])
        apply = jax.jit(lambda *x: model.apply(*x))
        params = as_scanned(params, config)
        zimg, ztxt, out = apply({"params": params}, quick.images, quick.tokens)
        scores = np.asarray(out["t"].reshape(1, 1) * zimg @ ztxt.T)
    assert relative_error(quick.ours.logits, scores) <= 1e-12


def test_the_activation_must_be_said():
    for config in (config_of("clip_text_base"), config_of("vit_base_patch32_clip_224")):
        model = from_config({**config, **SIZES, "activation": None})
        x = jnp.zeros((1, 4), int) if "vocab_size" in config else jnp.zeros((1, 32, 32, 3))
        with pytest.raises(UserError, match=r"'quick_gelu' is .*OpenAI.*'gelu' is .*LAION-2B"):
            model.init(jax.random.key(0), x, train=False)
    model = from_config({**config_of("clip_text_base"), **SIZES, "activation": "gelu_new"})
    with pytest.raises(UserError, match="unknown activation 'gelu_new'"):
        model.init(jax.random.key(0), jnp.zeros((1, 5), int))


def test_texts_that_are_too_long_are_refused():
    model = from_config({**config_of("clip_text_base"), **SIZES, "vocab_size": 9, "max_length": 4})
    with pytest.raises(UserError, match="up to 4 tokens, got 5"):
        model.init(jax.random.key(0), jnp.zeros((1, 5), int))

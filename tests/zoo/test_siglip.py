"""SigLIP's two towers against transformers, and its files in every layout.

The image tower alone stands in the battery, against timm.
"""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from zoo_cases import config_of

from vit_jax import checkpoint
from vit_jax.checkpoint import from_torch, names, to_torch
from vit_jax.checkpoint.files.formats import open_archive, write_npz
from vit_jax.checkpoint.stacked import stack_blocks
from vit_jax.errors import UserError
from vit_jax.families.registry import get
from vit_jax.families.text import Text
from vit_jax.models import from_config
from vit_jax.parity import references, subject
from vit_jax.parity.comparing import compare
from vit_jax.parity.figures import FLOAT32_BAR, FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours, trace_torch
from vit_jax.tree import arrays, unflatten
from vit_jax.variables import named

SIZE = (32, 128)  # as many patches as a square image has, which transformers wants
LENGTH = 12
BLOCKS = {
    "num_layers": 2,
    "num_heads": 4,
    "mlp_dim": 100,
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
}


@functools.cache
def config() -> dict:
    found = config_of("siglip-base-patch16-224")
    found["image"] |= {"hidden_size": 48, "transformer": BLOCKS}
    del found["image"]["model_name"]
    text = {"width": 32, "num_layers": 3, "num_heads": 2, "mlp_dim": 72, "vocab_size": 80}
    return found | {"text": text, "out_dim": (None, 48), "length": LENGTH}


@functools.cache
def prepared() -> subject.Subject:
    return subject.prepare(config(), None, SIZE, 0, seed=0)


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    return subject.random_inputs(config(), SIZE, 3, seed=1)


@functools.cache
def ours64() -> np.ndarray:
    model = from_config(prepared().config)
    return trace_ours(model, prepared().variables, inputs(), [], np.float64).logits


def module():
    """transformers' model with the weights, with our numerics, in float64."""
    state = to_torch(prepared().variables, config(), "hf")
    build = references.get("hf").build
    return build(config(), state, num_classes=0, image_size=SIZE, matched=True).double()


def error(changed) -> float:
    found = trace_torch(changed, inputs(), [], np.float64, references.get("hf").logits_of)
    return relative_error(ours64(), found.logits)


@pytest.mark.filterwarnings("ignore")
def test_both_towers_are_transformers():
    """Tokens after every block of either tower, and the scores of all pairs."""
    found = compare(config(), against="hf", image_size=SIZE, num_images=3)
    drifts = [*found.matched.blocks, found.matched.logits]
    assert len(drifts) == 2 + 1 + 3 + 1 + 1
    assert max(drift.error for drift in drifts) <= FLOAT64_BAR
    assert max(drift.error_float32 for drift in drifts) <= FLOAT32_BAR
    # As shipped it divides by the length alone.
    assert FLOAT64_BAR < found.as_shipped.logits.error < 1e-7


def erf_in_the_head(model):
    model.vision_model.head.mlp.activation_fn = torch.nn.GELU()


def erf_in_the_texts(model):
    for layer in model.text_model.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()


def mean_of_tokens(model):
    model.vision_model.head.forward = lambda tokens: tokens.mean(1)


def padding_is_masked(model):
    forward = model.text_model.forward

    def masked(input_ids, attention_mask=None, **others):
        return forward(input_ids, attention_mask=(input_ids != 0).long(), **others)

    model.text_model.forward = masked


def another_eps(model):
    model.text_model.final_layer_norm.eps = 1e-5


def keys_for_values(model):
    for x in (
        model.vision_model.head.attention.in_proj_weight,
        model.vision_model.head.attention.in_proj_bias,
    ):
        q, k, v = x.data.chunk(3)
        x.data = torch.cat([q, v, k])


# What must be seen, and at least how well.
WRONG = {
    erf_in_the_head: 1e-5,
    erf_in_the_texts: 1e-5,
    another_eps: 1e-7,
    mean_of_tokens: 0.1,
    padding_is_masked: 0.1,
    keys_for_values: 0.1,
}


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_is_seen():
    assert error(module()) <= FLOAT64_BAR
    for change, least in WRONG.items():
        changed = module()
        change(changed)
        assert error(changed) >= least, change.__name__


def test_scanned_blocks_compute_the_same():
    fields = config() | {
        "image": config()["image"] | {"transformer": BLOCKS | {"scan": True}},
        "text": config()["text"] | {"scan": True},
    }
    # The towers differ in depth.
    stacked = {"params": stack_blocks(prepared().variables["params"])}
    found = trace_ours(from_config(fields), stacked, inputs(), [], np.float64)
    assert relative_error(ours64(), found.logits) <= FLOAT64_BAR


@pytest.mark.parametrize("scanned", [(), ("img",), ("img", "txt")])
def test_big_visions_files_come_back_bit_for_bit(scanned, tmp_path):
    """Through transformers' directory, with blocks stacked in each tower or not."""
    tree = dict(prepared().variables["params"])
    theirs = arrays(tree | {tower: stack_blocks(tree[tower]) for tower in scanned})
    moved = theirs.pop("img/Transformer/posembed_input/pos_embedding")
    theirs["img/pos_embedding"] = moved
    write_npz(tmp_path / "x.npz", {f"params/{name}": x for name, x in theirs.items()})
    how = {"model": config(), "image_size": SIZE}
    for source, to, target in [("x.npz", "hf", "there"), ("there", "big_vision", "y.npz")]:
        checkpoint.convert(tmp_path / source, tmp_path / target, to=to, **how)
    with open_archive(tmp_path / "y.npz") as archive:
        back = {name: np.asarray(archive[name]) for name in archive}
    flat = dict(prepared().params)
    flat["img/pos_embedding"] = flat.pop("img/Transformer/posembed_input/pos_embedding")
    assert back.keys() == {f"params/{name}" for name in flat}
    for name, x in flat.items():
        np.testing.assert_array_equal(back[f"params/{name}"], x, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_what_transformers_saves_is_read_and_what_we_write_is_loaded(tmp_path):
    square: dict[str, Any] = {"image_size": (64, 64)}
    this = subject.prepare(config(), None, (64, 64), 0, seed=0)
    state = to_torch(this.variables, config(), "hf")
    build = references.get("hf").build
    model: Any = build(config(), state, num_classes=0, matched=False, **square)
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs/spiece.model").write_bytes(b"whatever")
    facts = checkpoint.identify(tmp_path / "theirs")
    assert facts.text == Text("siglip", str(tmp_path / "theirs/spiece.model"), LENGTH)
    assert facts.config is not None
    assert get(facts.config).title == "SigLIP"
    assert (facts.config["length"], facts.image_size) == (LENGTH, (64, 64))
    read = arrays(checkpoint.load(tmp_path / "theirs"))
    assert read.keys() == this.params.keys()
    for name, x in this.params.items():
        np.testing.assert_array_equal(read[name], x, err_msg=name)
    checkpoint.convert(tmp_path / "theirs", tmp_path / "ours", to="hf")
    loaded: Any = transformers.SiglipModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    back, info = loaded
    assert not any(info.values()), info
    for name, x in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], x), name


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_an_image_tower_has_a_prefix_or_none(prefix):
    tower = get(config()).parts(config())["img"]
    params = prepared().variables["params"]["img"]
    state = to_torch({"params": params}, tower, "hf")
    spelled = {f"{prefix}{name}": x for name, x in state.items()}
    back = from_torch(spelled, tower, "hf")
    for name, x in arrays(named(back)).items():
        np.testing.assert_array_equal(x, arrays(params)[name], err_msg=name)


def test_what_transformers_cannot_hold_has_one_message():
    layout = names.layout_of(config(), "hf")
    with pytest.raises(UserError, match="positions of square images only"):
        layout.build.write(config(), (48, 80))
    pooled = config_of("vit_base_patch16_siglip_gap_224")
    with pytest.raises(UserError, match="pools its tokens by attention or not at all"):
        names.layout_of(pooled, "hf").build.write(pooled, (224, 224))
    with pytest.raises(UserError, match="drop the head"):
        names.table(config_of("vit_base_patch16_siglip_224"), "hf")


def test_published_sizes_and_tokens():
    """384 pixels of 14 leave six over; the first So400m of 224 pixels has 16 tokens."""
    for name, size, length in [
        ("siglip-so400m-patch14-384", 384, 64),
        ("siglip-so400m-patch14-224", 224, 16),
        ("siglip2-so400m-patch14-384", 384, 64),
    ]:
        fields = config_of(name)
        shapes = names.expected_shapes(fields, num_classes=0, image_size=(size, size))
        assert names.image_size_of(fields, shapes) == (size, size)
        assert shapes["txt/pos_embedding"] == (1, length, 1152)


def test_it_trains_as_published():
    """A temperature of 10 and a bias of -10 before the first step."""
    model = from_config(config())
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs().values()]
    made = jax.eval_shape(model.init, jax.random.key(0), *shapes)
    assert arrays(unflatten(arrays(made["params"]))).keys() == prepared().params.keys()
    assert (model.temperature_init, model.bias_init, model.norm_eps) == (10.0, -10.0, 1e-8)

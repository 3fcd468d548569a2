"""big_vision's Vision Transformers in ours: files of its tiny models, and their figures."""

import functools

import jax
import numpy as np
import pytest
from zoo_golden import Golden

from vit_jax import checkpoint
from vit_jax.checkpoint.files.formats import open_archive, write_npz
from vit_jax.errors import UserError
from vit_jax.models import from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.traces import trace_ours
from vit_jax.tree import arrays, unflatten

SIZE = (40, 56)
# Figures -> what the constructor gets: the MAP head, the class token with a representation before
# the head, and the first patch of blocks that were stacked, with positions that are computed.
MODELS = {
    "bv_map_tiny": {"classifier": "map"},
    "bv_tok_tiny": {"classifier": "token", "representation_size": 16},
    "bv_tok_scan_tiny": {"classifier": "first"},
}
POINTS = {
    "mid_stem": "embedding",
    "mid_block0": "Transformer/encoderblock_0",
    "mid_encoded": "Transformer/encoder_norm",
}


def config_of(name: str) -> dict:
    transformer = {"num_layers": 2, "num_heads": 3, "mlp_dim": 40, "dropout_rate": 0.0}
    sizes = {"hidden_size": 24, "patches": {"size": (8, 8)}, "representation_size": None}
    return {**sizes, "transformer": transformer, **MODELS[name]}


@functools.cache
def golden(name: str) -> Golden:
    return Golden(name)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def path(name, tmp_path):
    """The file as big_vision writes it."""
    path = tmp_path / "checkpoint.npz"
    write_npz(path, {f"params/{key}": x for key, x in golden(name).weights.items()})
    return path


def test_its_files_compute_its_figures(name, path):
    figures = golden(name).figures
    params = checkpoint.load(path, config_of(name), image_size=SIZE)
    model = from_config(config_of(name), num_classes=7)
    wide = unflatten({key: x.astype(np.float64) for key, x in arrays(params).items()})
    trace = trace_ours(model, {"params": wide}, golden(name).images, [*POINTS.values()], np.float64)
    errors = {"logits_f64": relative_error(trace.logits, figures["logits_f64"])}
    for key, x in zip(POINTS, trace.blocks, strict=True):
        errors[key] = relative_error(x, figures[key].reshape(x.shape))
    # Sines are stored in float32, in which no file of big_vision holds them.
    bar = FLOAT64_BAR if "pos_embedding" in golden(name).weights else 1e-6
    assert errors.pop("mid_stem") <= FLOAT64_BAR
    assert max(errors.values()) <= bar, errors


def test_its_files_come_back_bit_for_bit(name, path, tmp_path):
    back = tmp_path / "back.npz"
    checkpoint.convert(path, back, to="big_vision", model=config_of(name), image_size=SIZE)
    with open_archive(back) as archive:
        found = {key.removeprefix("params/"): np.asarray(archive[key]) for key in archive}
    for key, x in golden(name).weights.items():
        if "/encoderblock/" not in key:
            np.testing.assert_array_equal(found[key], x, err_msg=key)
            continue
        for i, layer in enumerate(x):
            one = key.replace("/encoderblock/", f"/encoderblock_{i}/")
            np.testing.assert_array_equal(found[one], layer, err_msg=one)


def test_pooling_by_attention_needs_the_sizes_of_blocks():
    config = {**config_of("bv_map_tiny"), "transformer": None}
    model = from_config(config, num_classes=7)
    with pytest.raises(UserError, match="takes its sizes from `transformer`"):
        model.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32), train=False)

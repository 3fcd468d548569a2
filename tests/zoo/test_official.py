"""Models of many families against figures of their papers' own code, by one table."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from zoo_figures import ROWS, Resized, official
from zoo_golden import FOLDER
from zoo_official import Official

from vit_jax.families.registry import resolve
from vit_jax.families.sizes import recorded
from vit_jax.layers.block import vit_block
from vit_jax.layers.head import HEADS, heads_of
from vit_jax.layers.norm import BatchNorm, LayerNorm5
from vit_jax.models import ceit, cpvt, deepvit, diversepatch, refiner
from vit_jax.parity.figures import FLOAT64_BAR

MIXED = [name for name, row in ROWS.items() if row.mix]
# The weights of these are those of another row, fitted to larger images.
OWN_WEIGHTS = [name for name, row in ROWS.items() if row.official is not Resized]

_OTHER_BATCH_NORM = functools.partial(BatchNorm, epsilon=1e-3)
_TANH_BLOCK = functools.partial(vit_block, activation=nn.gelu)
# Parts of a model's module, and others that must be seen.
WRONG: list[tuple[str, Any, str, Any]] = [
    ("ceit_tiny", ceit, "exact_gelu", nn.gelu),
    ("cpvt_tiny_cls", cpvt, "LayerNorm", LayerNorm5),
    ("cpvt_tiny_gap", cpvt, "vit_block", _TANH_BLOCK),
    ("deepvit_reattn_tiny", deepvit, "vit_block", _TANH_BLOCK),
    ("deepvit_reattn_tiny", deepvit, "LayerNorm", LayerNorm5),
    ("deepvit_reattn_tiny", deepvit, "BatchNorm", _OTHER_BATCH_NORM),
    ("refiner_tiny_plainembed_transform", refiner, "LayerNorm", LayerNorm5),
    (
        "refiner_tiny_plainembed_transform",
        refiner,
        "BatchNorm",
        functools.partial(BatchNorm, epsilon=1e-3),
    ),
    ("diversepatch_tiny_notalk", diversepatch, "vit_block", _TANH_BLOCK),
]
# The same of fields that change no tensor.
OTHER_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("deepvit_S_tiny", {"reattention_scaled": False}),
    ("deepvit_S_tiny", {"stream_scale": 1.0}),
]

# Numbers of parameters in the official code: buffers left out, frozen tables and, for CPVT, one
# generator of positions among them.
COUNTS = {
    "vit_2_4_32": 214_666,
    "vit_4_4_32": 413_066,
    "vit_6_4_32": 3_190_538,
    "vit_7_4_32": 3_716_874,
    "cvt_2_4_32": 214_539,
    "cvt_4_4_32": 412_939,
    "cvt_6_4_32": 3_190_283,
    "cvt_7_4_32": 3_716_619,
    "cpvt_ti_patch16_224": 5_681_512,
    "cpvt_s_patch16_224": 21_978_856,
    "cpvt_b_patch16_224": 86_424_040,
    "cpvt_ti_gap_patch16_224": 5_681_320,
    "cpvt_s_gap_patch16_224": 21_978_472,
    "cpvt_b_gap_patch16_224": 86_423_272,
    "t2t_vit_7": 4_310_222,
    "t2t_vit_10": 5_889_230,
    "t2t_vit_12": 6_941_902,
    "t2t_vit_14": 21_545_550,
    "t2t_vit_19": 39_177_422,
    "t2t_vit_24": 64_105_934,
    "t2t_vit_t_14": 21_541_070,
    "t2t_vit_t_19": 39_172_942,
    "t2t_vit_t_24": 64_101_454,
    "ceit_tiny_patch16_224": 6_356_904,
    "ceit_small_patch16_224": 24_204_840,
    "ceit_base_patch16_224": 94_405_416,
    "refiner_vit_s": 25_408_656,
    "refiner_vit_m": 55_450_932,
    "refiner_vit_l": 81_150_192,
    "deepvit_patch16_224_re_attn_16b": 24_426_664,
    "deepvit_patch16_224_re_attn_24b": 36_261_448,
    "deepvit_patch16_224_re_attn_32b": 48_096_232,
    "deepvit_S": 27_312_632,
    "deepvit_L": 58_883_708,
    "diversepatch_deit_tiny_patch16_224": 5_910_632,
    "diversepatch_deit_small_patch16_224": 22_436_528,
    "diversepatch_deit_base_patch16_224": 87_340_112,
    "diversepatch_deit_base_patch16_384": 87_631_952,
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ROWS)
def test_figures_are_the_official_codes(name, dtype):
    """Logits, and what is computed on the way to them."""
    official(name).assert_same(dtype)


@pytest.mark.parametrize("name", ROWS)
def test_no_recorded_figure_is_left_out(name):
    row = ROWS[name]
    compared = {*row.points, *row.training, row.logits}
    taken = {
        key for key in np.load(FOLDER / f"{name}.npz") if key.startswith(("mid_", "feat", "log"))
    }
    assert taken - compared == ({"mid_block0"} if name == "bv_tok_scan_tiny" else set())


@pytest.mark.parametrize("name", OWN_WEIGHTS)
def test_official_names_both_ways(name):
    official(name).assert_names_both_ways()


@pytest.mark.parametrize("name", OWN_WEIGHTS)
def test_every_tensor_counts_that_can(name):
    this = official(name)
    if name == "cvt_tiny":  # images of any size will do, and these make it slow
        this = Official(name, this.config, {"logits_f64": ""})
        this.golden.images = this.golden.images[:1, :32, :32]
    this.assert_every_tensor_matters()


def test_only_patches_go_through_the_convolutions_of_ceits_last_block():
    """So that they change nothing: the class token is what is read."""
    unread = official("ceit_tiny").facts["insensitive"]
    assert {key.split(".leff.")[0] for key in unread} == {"blocks.2"}


@pytest.mark.parametrize(("name", "module", "part", "other"), WRONG)
def test_another_formula_is_seen(monkeypatch, name, module, part, other):
    this = official(name)
    assert hasattr(module, part)
    monkeypatch.setattr(module, part, other)
    assert this.logits_error() > FLOAT64_BAR


@pytest.mark.parametrize(("name", "fields"), OTHER_FIELDS)
def test_other_fields_are_seen(name, fields):
    assert official(name).logits_error(**fields) > FLOAT64_BAR


@pytest.mark.parametrize("name", MIXED)
def test_mixed_tokens_are_the_official_codes(name):
    """A box of patches from the other image, with the batch's statistics and the running ones."""
    this, row = official(name), ROWS[name]
    rows, columns = (side // 16 for side in this.golden.images.shape[1:3])
    top, left, bottom, right = row.mix
    box = np.zeros((rows, columns), bool)
    box[top:bottom, left:right] = True

    @jax.jit
    def both(variables, images, mix):
        outputs = {}
        for statistics in ("bnbatch", "bneval"):
            train = statistics == "bnbatch"
            how = {"train": train, "mix": mix, "mutable": ["batch_stats", HEADS]}
            found, (logits, state) = this.apply(
                variables, images, row.training if train else {}, **how
            )
            cls, of_tokens = heads_of(logits, state)
            heads = {"cls": cls, "aux": of_tokens}
            outputs |= {f"train_{statistics}_{key}_f64": x for key, x in heads.items()}
            outputs |= found
        return outputs, logits

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), this.variables)
        found, logits = jax.device_get(both(wide, this.golden.images, box))
        unmixed, _ = jax.device_get(both(wide, this.golden.images, np.zeros_like(box)))
    errors = this.errors(found)
    assert max(errors.values()) <= FLOAT64_BAR, errors
    cls, of_tokens = (found[f"train_bneval_{key}_f64"] for key in ("cls", "aux"))
    np.testing.assert_allclose(logits, cls + of_tokens.max(1) / 2, rtol=1e-12)
    apart = this.errors({key: x for key, x in unmixed.items() if key.startswith("train_")})
    assert min(apart.values()) > FLOAT64_BAR, apart


def test_published_sizes():
    assert {name: recorded()[name].params for name in COUNTS} == COUNTS


def test_compact_models_are_for_small_images():
    for name in (name for name in COUNTS if name.endswith("_4_32")):
        assert (resolve(name).preprocess.size, resolve(name).num_classes) == (32, 10)

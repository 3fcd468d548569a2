"""Masked autoencoders against figures of the official code, and what is fixed in them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo_mae
from zoo_mae import CONFIG, PATCH, computed, golden

from vit_jax.checkpoint import from_torch, names, to_torch
from vit_jax.errors import UserError
from vit_jax.families.mae import DECODER, ENCODER, encoder_config
from vit_jax.families.parts import POSITIONS
from vit_jax.families.registry import require_images, resolve
from vit_jax.families.rules import Exported
from vit_jax.families.sizes import recorded
from vit_jax.layers.masking import is_kept, kept_patches, put_back
from vit_jax.layers.sincos import sincos2d
from vit_jax.models import from_config
from vit_jax.models.mae import positions_of
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.subject import random_inputs, random_params
from vit_jax.parity.traces import trace_ours
from vit_jax.train.masked_autoencoder import targets
from vit_jax.tree import unflatten

CASES = ["mae", "mae_normpix"]
SIZE = (32, 48)


# --- figures of the official code -----------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_figures_are_the_official_codes(name):
    figures, ours = golden(name).figures, computed(name)
    np.testing.assert_array_equal(ours["mask"], figures["mask"])
    for key in ("latent", "pred"):
        assert relative_error(ours[key], figures[f"{key}_f64"]) <= FLOAT64_BAR
    np.testing.assert_allclose(ours["loss"], figures["loss_f64"], rtol=FLOAT64_BAR)


@pytest.mark.parametrize("name", CASES)
def test_the_gradients_are_the_official_codes(name):
    """Two of them number for number, all by their sum and norm; the tables have none."""
    ours = computed(name)["gradients"]
    for part in (ENCODER, DECODER):
        assert not ours[f"{part}/{POSITIONS}"].any()
    theirs = dict(Exported(names.table(CONFIG, "torch"), ours))
    for key in ("mask_token", "cls_token"):
        assert relative_error(theirs[key], golden(name).figures[f"grad:{key}"]) <= FLOAT64_BAR
    known = zoo_mae.gradient_norms(name)
    assert theirs.keys() - known.keys() == {"pos_embed", "decoder_pos_embed"}
    floor = 1e-12 * max(norm for _, norm in known.values())
    for key, (total, norm) in known.items():
        found = np.linalg.norm(theirs[key])
        np.testing.assert_allclose(found, norm, rtol=FLOAT64_BAR, atol=floor, err_msg=key)
        np.testing.assert_allclose(theirs[key].sum(), total, rtol=1e-9, atol=floor, err_msg=key)


def by_hand(images: np.ndarray, ddof: int | None) -> np.ndarray:
    """The targets patch by patch; normalised unless `ddof` is None."""
    rows, columns = (side // 8 for side in images.shape[1:3])
    found = []
    for i in range(rows * columns):
        r, c = 8 * (i // columns), 8 * (i % columns)
        x = images[:, r : r + 8, c : c + 8].reshape(len(images), -1)
        if ddof is not None:
            mean = x.mean(axis=1, keepdims=True)
            variance = ((x - mean) ** 2).sum(axis=1, keepdims=True) / (x.shape[1] - ddof)
            x = (x - mean) / np.sqrt(variance + 1e-6)
        found.append(x)
    return np.stack(found, axis=1)


@pytest.mark.parametrize("name", CASES)
def test_targets_by_hand_and_the_other_variance_is_seen(name):
    """The recorded loss is that of recorded predictions, by the unbiased variance alone."""
    case, ours = golden(name), computed(name)
    ddof = 1 if name == "mae_normpix" else None
    np.testing.assert_allclose(ours["target"], by_hand(case.images, ddof), rtol=1e-9, atol=1e-9)
    mask, pred = case.figures["mask"], case.figures["pred_f64"]

    def loss(target: np.ndarray) -> float:
        return float((((pred - target) ** 2).mean(axis=2) * mask).sum() / mask.sum())

    wanted = case.figures["loss_f64"]
    np.testing.assert_allclose(loss(by_hand(case.images, ddof)), wanted, rtol=1e-12)
    if ddof is not None:
        assert abs(loss(by_hand(case.images, 0)) / wanted - 1) > 1e-4


def test_targets_of_oblong_images():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 40, 3)).astype(np.float32)
    for norm_pixels, ddof in ((True, 1), (False, None)):
        found = targets(jnp.asarray(images), PATCH, norm_pixels=norm_pixels)
        np.testing.assert_allclose(found, by_hand(images, ddof), rtol=1e-4, atol=1e-5)


def test_official_names_both_ways():
    params = from_torch(golden("mae").weights, CONFIG, "official")["params"]
    again = to_torch({"params": params}, CONFIG, "official")
    assert again.keys() == golden("mae").weights.keys()
    for key, x in golden("mae").weights.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)


# --- fixed positions, and what is removed ---------------------------------------------------------


def test_the_tables_are_the_official_codes():
    """Column first, and m / (D / 4); big_vision's other frequencies and rows first are seen."""
    for key, width in (("pos_embed", 32), ("decoder_pos_embed", 16)):
        theirs = golden("mae").figures[f"frozen:{key}"]
        table = positions_of((4, 4), width)
        np.testing.assert_allclose(table, theirs, atol=1e-7)
        assert np.abs(sincos2d((4, 4), width) - theirs[:, 1:]).max() > 0.1
        rows_first = np.roll(table, width // 2, axis=2)
        assert np.abs(rows_first - theirs).max() > 0.1


def test_a_fresh_model_has_the_tables_of_its_images():
    model = from_config(CONFIG)
    images, kept = jnp.zeros((1, *SIZE, 3)), jnp.zeros((1, 6), jnp.int32)
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), images, kept)["params"]
    for part, width in ((ENCODER, 32), (DECODER, 16)):
        found = params[part]["posembed_input"]["pos_embedding"]
        np.testing.assert_array_equal(found, positions_of((4, 6), width))
    # Each kernel as the official code draws it, whose layer of queries, keys and values is one.
    block = params[ENCODER]["Transformer"]["encoderblock_0"]
    attention = block["MultiHeadDotProductAttention_0"]
    bounds = {"query": 6 / (4 * 32), "out": 6 / (2 * 32)}
    for name, square in bounds.items():
        largest = np.abs(attention[name]["kernel"]).max()
        assert 0.95 * square**0.5 < largest <= square**0.5
    largest = np.abs(params[ENCODER]["embedding"]["kernel"]).max()
    assert 0.95 < largest / (6 / (192 + 32)) ** 0.5 <= 1


def test_kept_patches_and_their_places():
    noise = jnp.array([[0.5, 0.1, 0.9, 0.3], [0.2, 0.8, 0.1, 0.7]])
    kept = kept_patches(noise, 0.5)
    np.testing.assert_array_equal(kept, [[1, 3], [2, 0]])
    seen = [[False, True, False, True], [True, False, True, False]]
    np.testing.assert_array_equal(is_kept(kept, 4), seen)
    x = jnp.array([[[1.0], [3.0]], [[2.0], [0.0]]])
    back = put_back(x, kept, jnp.full((1, 1, 1), 9.0), 4)
    np.testing.assert_array_equal(back[..., 0], [[9, 1, 9, 3], [0, 9, 2, 9]])
    with pytest.raises(UserError, match=r"a share of 0.9 of 4 patches leaves none"):
        kept_patches(noise, 0.9)


# --- the model ------------------------------------------------------------------------------------


@functools.cache
def weights() -> dict[str, np.ndarray]:
    shapes = names.expected_shapes(CONFIG, num_classes=0, image_size=SIZE)
    return random_params(shapes, seed=0)


def test_an_encoder_that_sees_all_patches_is_deit():
    """Whatever the order of the patches; the decoder's part does not count."""
    params, inputs = weights(), random_inputs(CONFIG, SIZE, 2, seed=1)
    every = np.stack([np.random.default_rng(i).permutation(24) for i in range(2)])
    inputs["kept"] = every.astype(np.int32)
    tree = {"params": unflatten(params)}
    whole = trace_ours(from_config(CONFIG), tree, inputs, [ENCODER], np.float64)
    below = f"{ENCODER}/"
    own = {n.removeprefix(below): x for n, x in params.items() if n.startswith(below)}
    deit = from_config(encoder_config(CONFIG))
    alone = trace_ours(deit, {"params": unflatten(own)}, inputs["images"], [], np.float64)
    assert relative_error(whole.blocks[0][:, 0], alone.logits) <= FLOAT64_BAR


def test_scanned_blocks_and_bfloat16():
    """Encoder and decoder have stacks of different depths."""
    inputs, tree = random_inputs(CONFIG, SIZE, 2, seed=1), {"params": unflatten(weights())}
    plain = trace_ours(from_config(CONFIG), tree, inputs, [], np.float64).logits
    scanned = {**CONFIG, "scan": True, "remat": True}
    state = to_torch(tree, CONFIG, "official")
    stacked = from_torch(state, scanned, "official")
    block = stacked["params"][ENCODER]["Transformer"]["encoderblock"]
    assert block["LayerNorm_0"]["scale"].shape == (2, 32)
    found = trace_ours(from_config(scanned), stacked, inputs, [], np.float64).logits
    assert relative_error(found, plain) <= FLOAT64_BAR
    again = to_torch(stacked, scanned, "official")
    assert all((again[key] == x).all() for key, x in state.items())
    model = from_config({**CONFIG, "dtype": jnp.bfloat16})
    coarse = jax.jit(functools.partial(model.apply, train=False))(tree, *inputs.values())
    assert coarse.dtype == jnp.float32
    assert 1e-4 < relative_error(np.asarray(coarse), plain) < 0.1


def test_counts_are_those_of_transformers_and_timm():
    """Both fixed tables are counted, as in the specification's table."""
    known = recorded()
    assert {name: known[name].params for name in known if name.startswith("mae_")} == {
        "mae_vit_base_patch16": 111_907_840,
        "mae_vit_large_patch16": 329_541_888,
        "mae_vit_huge_patch14": 657_074_508,
    }
    for size, count in (("large_patch16", 303_301_632), ("huge_patch14", 630_764_800)):
        spec = resolve(f"vit_{size}_224.mae")
        assert (spec.family, spec.num_classes) == ("deit", 0)
        assert known[spec.config["model_name"]].params == count
    assert known["deit_base_patch16_224"].params - 769_000 == 85_798_656


def test_it_classifies_nothing():
    with pytest.raises(UserError, match=r"takes images and kept; .*--part encoder"):
        require_images(CONFIG, "x")

"""What only BEiT has: tables of biases with rows for a class token, and their three resizings."""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from scipy.interpolate import RectBivariateSpline
from timm.layers import resize_rel_pos_bias_table
from timm.models.beit import gen_relative_position_index
from zoo_cases import Case, resizing

from vit_jax.checkpoint import from_torch, names, recognise, to_torch
from vit_jax.checkpoint.names import shapes_of
from vit_jax.checkpoint.stacked import stack_blocks
from vit_jax.errors import UserError
from vit_jax.families.beit import resize_bias
from vit_jax.families.registry import resolve
from vit_jax.layers.relative import class_position_index
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.references import get as library
from vit_jax.tree import arrays
from vit_jax.variables import collections, named

NAME = "beit_base_patch16_224"
SIZES = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96}
TABLE = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_0/relative_position_bias"
TABLES = [TABLE.format(i) for i in range(2)]
FLOAT32_BAR = 2e-5


@functools.cache
def case(size: tuple[int, int] = (48, 80), layout: str = "timm") -> Case:
    """With tables whose numbers are about 0.5, so that what is wrong with them shows."""
    this = Case(NAME, size, layout=layout, **SIZES)
    for name in TABLES:
        this.flat[name] *= 0.5 / this.flat[name].std()
    this.variables = collections(this.flat, frozenset())
    return this


def error(ours: np.ndarray) -> float:
    return relative_error(ours, case().theirs())


@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 5), (5, 3)])
def test_rows_of_the_table_are_the_official_codes(window):
    theirs = gen_relative_position_index(window).numpy()
    np.testing.assert_array_equal(class_position_index(window), theirs)


def test_a_table_read_otherwise_is_seen():
    flat = case().flat
    flipped = {n: np.concatenate([flat[n][-4::-1], flat[n][-3:]]) for n in TABLES}
    permuted = {n: np.concatenate([flat[n][:-3], flat[n][[-1, -3, -2]]]) for n in TABLES}
    assert error(case().ours_from(**flipped)) > 0.05
    assert error(case().ours_from(**permuted)) > 0.02


def test_other_poolings_are_seen():
    """The class token in the mean, and tokens that are normalised before it."""
    this = case()
    assert error(this.ours64) <= FLOAT64_BAR
    with_class: Any = copy.deepcopy(this.module)
    before: Any = copy.deepcopy(this.module)
    with_class.num_prefix_tokens = 0
    before.norm, before.fc_norm = before.fc_norm, torch.nn.Identity()
    assert this.error(with_class) > 0.05
    assert this.error(before) > 0.5


def test_float32_stays_within_its_bar():
    this = case()
    apply = jax.jit(functools.partial(this.model.apply, train=False))
    logits = apply(this.variables, this.images.astype(np.float32))
    assert logits.dtype == jnp.float32
    assert error(np.asarray(logits)) <= FLOAT32_BAR


def test_scanned_blocks_compute_the_same():
    this = case()
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), this.variables["params"])
        model = this.model.clone(scan=True)
        logits = jax.jit(functools.partial(model.apply, train=False))(
            {"params": stack_blocks(params)}, this.images
        )
    assert error(np.asarray(logits)) <= FLOAT64_BAR


# --- other image sizes ----------------------------------------------------------------------------

GRIDS = [((7, 7), (12, 12)), ((7, 7), (4, 4)), ((7, 7), (9, 5)), ((6, 9), (9, 6))]


def random_table(grid: tuple[int, int], dtype: Any = np.float64) -> np.ndarray:
    rows, columns = (2 * side - 1 for side in grid)
    return np.random.default_rng(0).standard_normal((rows * columns + 3, 4)).astype(dtype)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_tables_are_resized_as_timm_does(old, new):
    """timm resizes in float32."""
    table = random_table(old, np.float32)
    shape = random_table(new).shape
    theirs = resize_rel_pos_bias_table(torch.from_numpy(table), new, shape, old).numpy()
    np.testing.assert_allclose(resize_bias(table, old, new, "timm"), theirs, atol=2e-6)
    for other in ("official", "bilinear"):
        assert np.abs(resize_bias(table, old, new, other) - theirs).max() > 1e-2


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_the_official_resizing_is_a_cubic_spline_between_the_same_distances(old, new):
    """SciPy names this class as what replaces the function that the official code calls."""
    table = random_table(old)
    known, wanted = [_distances(a, b) for a, b in zip(old, new, strict=True)], []
    for side, points in zip(new, known, strict=True):
        wanted.append(np.clip(np.arange(1 - side, side), points[0], points[-1]))
    grids = table[:-3].T.reshape(4, 2 * old[0] - 1, 2 * old[1] - 1)
    theirs = [RectBivariateSpline(*known, x, s=0)(*wanted).ravel() for x in grids]
    theirs = np.concatenate([np.stack(theirs, axis=1), table[-3:]])
    np.testing.assert_allclose(resize_bias(table, old, new, "official"), theirs, atol=1e-9)


def _distances(old: int, new: int) -> np.ndarray:
    """Where the official code takes the known distances to be, by its bisection."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2.0
        low, high = (low, q) if (1 - q ** (old - 1)) / (1 - q) > new - 1 else (q, high)
    positive = np.cumsum([q**i for i in range(old - 1)])
    return np.concatenate([-positive[::-1], [0], positive])


@pytest.mark.parametrize("new", [(112, 96), (48, 64)])
def test_stretched_tables_are_those_of_transformers(new):
    """It stretches the tables of a square model for the images that come, in float64 here."""
    old = case((80, 80), "hf")
    edits = resizing(old.config, shapes_of(old.flat), old.size, new, "bilinear")
    assert set(edits) == {*TABLES}
    flat = {n: x.astype(np.float64) for n, x in old.flat.items()}
    fitted = {n: edit(flat[n]) for n, edit in edits.items()}
    images = np.random.default_rng(3).uniform(-1, 1, (2, *new, 3))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = old.module(pixels).logits.numpy()
    ours = _logits(old, {**flat, **fitted}, images)
    assert relative_error(ours, theirs) <= FLOAT64_BAR
    timm = resizing(old.config, shapes_of(old.flat), old.size, new, "timm")
    other = _logits(old, {**flat, **{n: edit(flat[n]) for n, edit in timm.items()}}, images)
    assert relative_error(other, theirs) > 1e-3


def _logits(this: Case, flat: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        apply = jax.jit(functools.partial(this.model.apply, train=False))
        return np.asarray(apply(collections(flat, frozenset()), images))


def test_weights_fit_other_images_by_the_official_way():
    """Back and forth the shapes are those of the other size; the class token's rows stay."""
    old, new = case((80, 80)), case()
    edits = resizing(old.config, shapes_of(old.flat), old.size, new.size, None)
    official = resizing(old.config, shapes_of(old.flat), old.size, new.size, "official")
    for name in TABLES:
        table = edits[name](old.flat[name])
        assert table.shape == new.flat[name].shape
        np.testing.assert_array_equal(table, official[name](old.flat[name]))
        np.testing.assert_array_equal(table[-3:], old.flat[name][-3:])


def test_a_spline_needs_four_distances():
    with pytest.raises(UserError, match=r"takes 4 of them .* this table has 3"):
        resize_bias(random_table((2, 2)), (2, 2), (3, 3), "official")


@pytest.mark.parametrize("side", [48, 224])
def test_tables_tell_the_image_size(side):
    config = case().config
    shapes = names.expected_shapes(config, num_classes=7, image_size=(side, side))
    assert names.image_size_of(config, shapes) == (side, side)
    oblong = names.expected_shapes(config, num_classes=7, image_size=(48, 80))
    assert names.image_size_of(config, oblong) is None


# --- files ----------------------------------------------------------------------------------------


def test_indices_of_older_files_are_ignored():
    for layout, index in (
        ("timm", "blocks.0.attn.relative_position_index"),
        ("hf", "beit.encoder.layer.0.attention.attention.relative_position_bias."
         "relative_position_index"),
    ):  # fmt: skip
        this = case((48, 48), layout)
        state = to_torch(this.variables, this.config, layout)
        assert index.removesuffix("index") + "bias_table" in state or layout == "hf"
        back = arrays(named(from_torch({**state, index: np.zeros((10, 10))}, this.config, layout)))
        assert back.keys() == this.flat.keys()
        np.testing.assert_array_equal(back[TABLES[0]], this.flat[TABLES[0]])


def test_a_live_model_of_transformers_is_read():
    """Version 5 calls its parts otherwise than the files do."""
    this = case((48, 48), "hf")
    module = library("hf").build(
        this.config, this.state, num_classes=7, image_size=(48, 48), matched=True
    )
    assert isinstance(module, transformers.BeitForImageClassification)
    live = {n: x.numpy() for n, x in module.state_dict().items()}
    assert "beit.layers.0.attention.q_proj.weight" in live
    back = arrays(named(from_torch(live, this.config, "hf")))
    for name, x in this.flat.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)


def test_tensors_alone_do_not_tell_the_two_apart():
    """They want their images otherwise prepared: nothing is guessed, a name says which it is."""
    config = resolve(NAME).config.to_dict()
    shapes = names.expected_shapes(config, num_classes=3, image_size=(224, 224))
    found = recognise.of_tensors(shapes)
    assert {c.name for c in found} == {NAME, "beitv2_base_patch16_224"}
    assert len({c.numerics for c in found}) == 2
    assert {c.preprocess.mean[0] for c in found} == {0.5, 0.485}
    assert {c.image_size for c in found} == {(224, 224)}

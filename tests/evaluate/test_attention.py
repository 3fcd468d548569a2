"""`vit-jax attention` and its numbers, against sums written out."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from recipes import random_params

import vit_jax
from vit_jax import cli
from vit_jax.checkpoint import io, names, recorded
from vit_jax.evaluate import attention
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import resolve, shrunk
from vit_jax.tree import arrays
from vit_jax.variables import collections

GRID, STRIDE = (2, 3), (4, 8)


def weights(layers=3, heads=2, tokens=8):
    scores = np.random.default_rng(0).normal(size=(layers, 2, heads, tokens, tokens))
    return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


def test_rollout_is_the_product_written_out():
    layers = weights()
    got = attention.rollout(list(layers))
    for image in range(2):
        product: np.ndarray = np.eye(8)
        for layer in layers[:, image]:
            mean = layer.mean(axis=0)
            step = [[0.5 * mean[i, j] + 0.5 * (i == j) for j in range(8)] for i in range(8)]
            product = np.array(step) @ product
        np.testing.assert_allclose(got[image], product, rtol=1e-12)
        np.testing.assert_allclose(got[image].sum(-1), 1.0, rtol=1e-12)
    assert np.abs(attention.rollout(list(layers[::-1])) - got).max() > 1e-3


def test_distances_are_the_sum_written_out():
    (layer,) = weights(layers=1)
    places = [(4 * row, 8 * column) for row in range(2) for column in range(3)]
    want = np.zeros(2)
    for head in range(2):
        for image in range(2):
            for i in range(6):
                row = layer[image, head, 2 + i, 2:]  # two tokens come before the patches
                apart = [math.dist(places[i], place) for place in places]
                want[head] += sum(a * d for a, d in zip(row, apart, strict=True)) / row.sum() / 12
    np.testing.assert_allclose(attention.mean_distances(layer, GRID, STRIDE), want, rtol=1e-12)


def test_the_map_of_a_query():
    (layer,) = weights(layers=1)
    row = attention.map_of(layer[0], GRID, (1, 2))[1]
    np.testing.assert_array_equal(row, 8 * layer[0, 1, 7, 2:].reshape(GRID))
    row = attention.map_of(layer[0], GRID, "class")[0]
    np.testing.assert_array_equal(row, 8 * layer[0, 0, 0, 2:].reshape(GRID))


def written(folder, name, size=(28, 56)):
    config = resolve(name).config.to_dict()
    config |= shrunk(config)
    shapes = names.expected_shapes(config, image_size=size, num_classes=5)
    way = Preprocess(size, resize="squash")
    described = recorded.described(f"tiny-{name}", config, way, list("abcde"), size, None)
    path = folder / f"{name}.npz"
    variables = collections(arrays(random_params(shapes, 0.2)), names.statistics(config))
    io.save(path, variables, model=config, metadata={recorded.OURS: json.dumps(described)})
    return str(path)


@pytest.fixture(scope="module")
def registers(tmp_path_factory):
    return written(tmp_path_factory.mktemp("weights"), "vit_small_patch14_reg4_dinov2")


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_registers_are_left_out_of_a_grid_that_is_no_square(registers, photo, tmp_path, capsys):
    (look,) = vit_jax.load(registers).attention([photo])
    assert look.grid == (2, 4)
    assert look.picture.shape == (28, 56, 3)
    last = list(look.weights.values())[-1]
    assert last.shape[-1] == 1 + 4 + 8
    for out in ("maps.npz", "maps.png"):
        out = str(tmp_path / out)
        assert cli.main(["attention", registers, photo, "-o", out, "--heads", "all"]) == 0
    with np.load(tmp_path / "maps.npz") as found:
        one = found[found.files[0]]
    np.testing.assert_allclose(one, 13 * last[0, 0, 5:].reshape(2, 4), rtol=1e-6)
    assert Image.open(tmp_path / "maps.png").width > 300
    rest = ["-o", str(tmp_path / "x.svg"), "--json", "--show"]
    capsys.readouterr()
    assert cli.main(["attention", registers, photo, *rest, "rollout"]) == 0
    (shown,) = json.loads(capsys.readouterr().out).values()
    want = attention.rollout([x[None] for x in look.weights.values()])[0, 0, 5:] * 13
    np.testing.assert_allclose(np.ravel(shown), want, rtol=1e-6)
    for kind in ("distance", "positions", "filters"):
        assert cli.main(["attention", registers, photo, *rest, kind]) == 0


def test_bad_input_is_one_sentence(registers, photo, tmp_path, capsys):
    out = str(tmp_path / "out.png")
    swin = written(tmp_path, "swin_tiny_patch4_window7_224", (64, 64))
    for words, message in (
        ([registers, photo, "--layers", "99"], "from 0 to"),
        ([registers, photo, "--heads", "a"], "from 0 to"),
        ([registers, photo, "--query", "2,0"], "no patch 2,0"),
        ([registers, photo, "--query", "x"], "ROW,COLUMN"),
        ([registers, photo, "--show", "map"], "maps"),
        ([registers], "needs an image"),
        ([swin, photo], "no one grid of patches"),
    ):
        assert cli.main(["attention", *words, "-o", out]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert cli.main(["attention", registers, photo, "-o", out.replace("png", "gif")]) == 2
    assert not list(tmp_path.glob("out.*"))

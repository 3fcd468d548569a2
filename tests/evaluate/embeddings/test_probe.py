"""`vit-jax probe` and `vit-jax nearest` over what `vit-jax embed` wrote."""

import json

import embedding
import numpy as np
import pytest
from PIL import Image

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.evaluate.embeddings import neighbours, sheet
from vit_jax.evaluate.embeddings.folder import Entry, Folder, Manifest
from vit_jax.evaluate.embeddings.shards import Rows, writer
from vit_jax.evaluate.embeddings.table import Embeddings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, images to learn from and to test on, and their features."""
    folder = tmp_path_factory.mktemp("probe")
    embedding.write_model(folder / "tiny.npz")
    for split, count in (("train", 30), ("test", 14)):
        paths = embedding.write_images(folder / "images" / split, count)
        for path in paths[count // 2 :]:  # Dogs are brighter, so that there is something to learn.
            Image.fromarray(np.asarray(Image.open(path)) // 2 + 100).save(path)
        words = ("embed", folder / "tiny.npz", folder / "images" / split, "--batch=4")
        assert cli.main([*map(str, words), f"--out={folder / split}", "--shard-size=13"]) == 0
    return folder


def run(capsys, *words):
    """What a command prints as JSON."""
    capsys.readouterr()
    assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("how", [("--probe=knn", "--k=3"), ("--shots=5", "--probe=fewshot")])
def test_a_probe_finds_in_a_file_what_eval_computes(place, capsys, how):
    found = run(capsys, "probe", place / "train", place / "test", *how)
    words = ("eval", place / "tiny.npz", f"--dataset={place / 'images'}", *how)
    computed = run(capsys, *words)
    for name in ("top1", "num_train", "num_examples", *(("k",) if "k" in found else ("l2",))):
        assert found[name] == computed[name]
    assert found["top1"] > 0.6  # and not by chance


def write(place, vectors, labels="one", classes=("cat", "dog"), model="m", digest="d"):
    """A folder of embeddings of made-up vectors [N, D]; every second one is a dog."""
    data = {"inputs": [], "split": None, "tfds_data_dir": None, "description": "made up"}
    data |= {"examples": len(vectors), "digest": digest, "classes": classes, "labels": labels}
    known = {"path": "m.npz", "how": {}, "name": "m", "weights": model, "preprocess": {}}
    shape = {"features": list(vectors.shape[1:])}
    folder, manifest = Folder(place), Manifest(known, data, shape, "float32", "npy", 4)
    folder.begin(manifest)
    for shard in range(manifest.shards):
        index = np.array(manifest.range(shard))
        told = [int(i % 2) for i in index] if labels == "one" else [None] * len(index)
        with writer(folder, manifest, shard) as out:
            out.write(Rows(index, [f"key {i}" for i in index], told, {"features": vectors[index]}))
        folder.finish(shard, Entry(len(index), []))
    return place


def test_classes_are_matched_by_name_and_others_refused(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    x[1::2] += 9
    train, test = write(tmp_path / "a", x), write(tmp_path / "b", x, digest="e")
    swapped = write(tmp_path / "c", x, classes=("dog", "cat"), digest="e")
    knn = ("--probe=knn", "--k=1")
    assert run(capsys, "probe", train, test, *knn)["top1"] == 1
    assert run(capsys, "probe", train, swapped, *knn)["top1"] == 0
    assert run(capsys, "probe", train, swapped, *knn, "--by-position")["top1"] == 1
    assert cli.main(["probe", str(train), str(train), *knn]) == 0
    assert "what is tested was learnt" in capsys.readouterr().err
    bare = write(tmp_path / "d", x, labels="none", classes=())
    other = write(tmp_path / "f", x, model="another")
    cube = write(tmp_path / "g", x.reshape(10, 3, 1), digest="e")
    for folder, message in (
        (bare, "exactly one label"),
        (other, "another model"),
        (cube, "one vector each"),
        (tmp_path, "holds no embeddings"),
    ):
        assert cli.main(["probe", str(train), str(folder), *knn]) == 2
        assert message in capsys.readouterr().err


def test_the_nearest_are_those_of_all_shards(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(11, 5)).astype(np.float32)
    x[7] = 2 * x[2]  # as near as its equal, which comes first
    found = Embeddings.open(write(tmp_path / "a", x))
    queries = np.stack([x[2], rng.normal(size=5).astype(np.float32)])
    near = neighbours.nearest(found, queries, 6)
    cosines = queries @ x.T / np.outer(*(np.linalg.norm(a, axis=1) for a in (queries, x)))
    assert [n.index for n in near[0]][:2] == [2, 7]
    assert near[0][0].similarity == pytest.approx(1, abs=1e-6)
    for row, one in zip(cosines, near, strict=True):
        assert {n.index for n in one} == set(np.argsort(-row)[:6].tolist())
        values = [n.similarity for n in one]
        np.testing.assert_allclose(values, np.sort(row)[::-1][:6], atol=1e-6)
        assert [n.classes for n in one] == [("cat", "dog")[n.index % 2] for n in one]
    assert len(neighbours.nearest(found, queries, 99)[0]) == 11
    with pytest.raises(UserError, match="numbers; the model gives"):
        neighbours.nearest(found, queries[:, :4], 1)


def test_nearest_prints_and_draws(place, tmp_path, capsys):
    image = place / "images" / "train" / "cat" / "00004.png"
    drawn = tmp_path / "sheet.png"
    found = run(capsys, "nearest", place / "train", image, "--k=3", f"--sheet={drawn}")
    (one,) = found
    assert one["image"] == one["nearest"][0]["key"] == str(image)
    assert one["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    pixels = np.asarray(Image.open(drawn))
    # The query and its first neighbour are the same picture, and the second neighbour another.
    query, first, second = (pixels[12:140, x : x + 128] for x in (12, 176, 316))
    assert query.std() > 30
    np.testing.assert_array_equal(query, first)
    assert np.abs(first.astype(int) - second).mean() > 10


def test_nearest_says_what_is_missing(place, tmp_path, capsys):
    image = place / "images" / "test" / "cat" / "00000.png"
    other = embedding.write_model(tmp_path / "other.npz", scale=0.3)
    for words, message in (
        (("--weights", other), "its parameters are others"),
        (("--weights", tmp_path / "no.npz"), "--weights MODEL says where"),
        (("--k=0",), "at least 1"),
        (("--sheet=x.jpg",), "a file name in .png"),
    ):
        assert cli.main(["nearest", str(place / "train"), str(image), *map(str, words)]) == 2
        assert message in capsys.readouterr().err
    # The picture of a neighbour that is no longer where it was, and data that has changed.
    found = Embeddings.open(write(tmp_path / "a", np.eye(3, dtype=np.float32)))
    data = {**found.manifest.data, "inputs": [str(image)]}
    moved = Embeddings(found.folder, Manifest(**{**vars(found.manifest), "data": data}), [0])
    (near,) = neighbours.nearest(moved, np.eye(3)[:1], 1)
    with pytest.raises(UserError, match="is not the data that was embedded"):
        neighbours.Pictures(moved).record(near[0])


def test_pictures_of_any_size_fit_their_tiles(tmp_path):
    shapes = ((3, 900, 3), (700, 2, 3), (8, 8, 1))
    tiles = [sheet.Tile(np.full(shape, 7, np.uint8), "a" * 99, "…") for shape in shapes]
    sheet.draw([tiles, tiles[:1]], tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (36 + 3 * 140, 12 + 2 * 184)

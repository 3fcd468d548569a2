"""`vit-jax embed`: what is written is what the model gives, once for each example."""

import csv
import dataclasses
import json
import os
import shutil

import embedding
import numpy as np
import object_stores
import pyarrow.parquet as pq
import pytest

import vit_jax
from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.evaluate.embeddings import shards, writing
from vit_jax.evaluate.embeddings.folder import Entry, Folder, Manifest
from vit_jax.evaluate.embeddings.table import Embeddings
from vit_jax.input_pipeline.inputs import ImageFiles

COUNT, SHARD = 22, 8
DAMAGED = (3, 15)  # of the images in their order


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return embedding.write_model(tmp_path_factory.mktemp("model") / "tiny.npz")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two classes, and the paths of its images; two of them are damaged."""
    folder = tmp_path_factory.mktemp("data") / "images"
    paths = embedding.write_images(folder, COUNT)
    for number in DAMAGED:
        with open(paths[number], "wb") as file:
            file.write(b"no image")
    return folder, paths


@pytest.fixture(scope="module")
def expected(model, images):
    """Features and tokens of each image that can be read, by its path."""
    loaded = vit_jax.load(model)
    good = [path for i, path in enumerate(images[1]) if i not in DAMAGED]
    both = loaded.features(good), loaded.tokens(good)
    return {path: (features, tokens) for path, features, tokens in zip(good, *both, strict=True)}


def embed(*words):
    """The exit status of the command, of small batches and shards unless it says otherwise."""
    return cli.main(["embed", "--batch=1", f"--shard-size={SHARD}", *map(str, words)])


@pytest.fixture(scope="module")
def written(model, images, tmp_path_factory):
    """Features and tokens in both formats."""
    place = tmp_path_factory.mktemp("written")
    for form in ("parquet", "npy"):
        what = ("--what=features,tokens", f"--format={form}")
        assert embed(model, images[0], f"--out={place / form}", *what) == 0
    return place


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_each_example_has_what_the_model_gives(written, images, expected, form):
    found = Embeddings.open(written / form)
    assert found.class_names == ["cat", "dog"]
    assert found.missing == ""
    assert found.manifest.shards == len(found.finished) == 3
    for place, kind in enumerate(("features", "tokens")):
        rows = found.read(kind)
        assert rows.index.tolist() == [i for i in range(COUNT) if i not in DAMAGED]
        assert rows.keys == [images[1][i] for i in rows.index]
        names = [found.class_names[n] for n in rows.labels if isinstance(n, int)]
        assert names == [key.split("/")[-2] for key in rows.keys]
        wanted = np.stack([expected[key][place] for key in rows.keys])
        assert wanted.std() > 0.1
        np.testing.assert_allclose(rows.vectors[kind], wanted, atol=1e-5 * wanted.std())
        assert np.abs(rows.vectors[kind][1:] - wanted[:-1]).max() > 0.1  # each in its own row
    entries = [found.folder.entry(k) for k in found.finished]
    left_out = [tuple(one[:2]) for entry in entries for one in entry.left_out]
    assert left_out == [(i, images[1][i]) for i in DAMAGED]


def test_others_read_the_files_as_they_are(written):
    table = pq.read_table(written / "parquet")  # the journal beside the shards is no obstacle
    assert table.column_names == ["index", "key", "label", "features", "tokens"]
    one = pq.read_table(written / "parquet" / "shard-000001.parquet")
    assert one.schema.field("tokens").type.list_size == 4
    features = np.load(written / "npy" / "shard-000001.features.npy")
    with open(written / "npy" / "shard-000001.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["index"] for line in lines] == list(map(str, one["index"].to_pylist()))
    assert [line["key"] for line in lines] == one["key"].to_pylist()
    np.testing.assert_array_equal(features, np.stack(one["features"].to_numpy()))


def test_a_damaged_image_is_named_and_may_end_the_command(model, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert embed(model, images[0], f"--out={out}", "--on-error=raise") == 2
    error = capsys.readouterr().err
    assert error.count("vit-jax: error:") == 1
    assert images[1][DAMAGED[0]] in error
    assert Folder(out).finished() == []
    assert not [name for name in os.listdir(out) if "shard" in name]  # nothing half-written
    assert embed(model, images[0], f"--out={out}", "--json") == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["left_out"] == 2
    assert all(images[1][i] in error for i in DAMAGED)


def test_the_same_command_goes_on_behind_finished_shards(written, model, images, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(written / "parquet", out)
    # As after a kill: of shard 1 there are files and no entry, of shard 2 a part of a file.
    os.unlink(out / "_journal" / "000001.json")
    os.unlink(out / "_journal" / "000002.json")
    (out / "shard-000001.parquet").write_bytes(b"old")
    os.rename(out / "shard-000002.parquet", out / ".shard-000002.parquet.77.tmp")
    untouched = os.stat(out / "shard-000000.parquet").st_mtime_ns
    partly = Embeddings.open(out)
    assert partly.finished == [0]
    assert "8 of 22" in partly.missing
    assert partly.read().index.tolist() == [0, 1, 2, 4, 5, 6, 7]
    what = "--what=features,tokens"
    assert embed(model, images[0], f"--out={out}", what, "--json") == 0
    assert json.loads(capsys.readouterr().out)["written_now"] == COUNT - SHARD
    assert os.stat(out / "shard-000000.parquet").st_mtime_ns == untouched
    assert sorted(os.listdir(out)) == sorted(os.listdir(written / "parquet"))
    for kind in ("features", "tokens"):
        ours, before = (Embeddings.open(place).read(kind) for place in (out, written / "parquet"))
        assert ours.index.tolist() == before.index.tolist()
        np.testing.assert_allclose(ours.vectors[kind], before.vectors[kind], atol=1e-6)


def test_another_model_other_data_or_settings_are_refused(written, model, images, tmp_path, capsys):
    out, data = f"--out={written / 'npy'}", images[0]
    other = embedding.write_model(tmp_path / "other.npz", scale=0.3)
    moved = shutil.copy(model, tmp_path / "moved.npz")
    usual = ("--what=features,tokens", "--format=npy")
    assert embed(moved, data, out, *usual) == 0  # the same weights elsewhere
    capsys.readouterr()
    assert embed(other, data, out, *usual) == 2
    assert "model/weights: " in capsys.readouterr().err
    folder = Folder(written / "npy")
    manifest = folder.manifest()
    for name, field, value in (
        ("data/digest", "data", {**manifest.data, "digest": "0"}),
        ("vectors/tokens", "vectors", {"features": manifest.vectors["features"]}),
        ("format", "format", "parquet"),
        ("dtype", "dtype", "float16"),
        ("shard_size", "shard_size", SHARD + 1),
    ):
        with pytest.raises(UserError, match=f"other settings: {name}: "):
            folder.require(dataclasses.replace(manifest, **{field: value}))
    fewer, renamed = (writing.describe(ImageFiles(x, "")) for x in (images[1][:9], ["a"] * COUNT))
    assert fewer["examples"] == 9
    assert renamed["digest"] != writing.describe(ImageFiles(images[1], ""))["digest"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert embed(model, data, f"--out={tmp_path / 'full'}") == 2
    assert "holds 'thesis.txt'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--what=features,tokns", "Did you mean 'tokens'"),
        ("--what=features,features", "each once"),
        ("--format=parket", "Did you mean 'parquet'"),
        ("--dtype=int8", "float32 or float16"),
        ("--shard-size=0", "at least 1"),
        ("--on-error=report", "skip or raise"),
    ],
)
def test_options_are_checked_before_anything_is_read(tmp_path, capsys, option, message):
    assert embed("no model", tmp_path / "no.png", f"--out={tmp_path / 'out'}", option) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_shard_that_was_changed_is_refused(written, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(written / "npy", out)
    vectors = np.load(out / "shard-000001.features.npy")
    np.save(out / "shard-000001.features.npy", vectors[:-1])
    with pytest.raises(UserError, match="was changed after it was written"):
        Embeddings.open(out).read()
    os.unlink(out / "shard-000001.csv")
    with pytest.raises(UserError, match="cannot read"):
        Embeddings.open(out).read()
    with pytest.raises(UserError, match="holds no embeddings"):
        Embeddings.open(tmp_path)


def test_a_disk_that_is_gone_is_no_folder_of_damaged_images(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writing, "MOST_UNREADABLE", 5)
    paths = tmp_path / "paths.txt"
    paths.write_text("\n".join(f"/gone/{i}.png" for i in range(9)))
    assert embed(model, paths, f"--out={tmp_path / 'out'}") == 2
    assert "5 images in a row cannot be read, the last" in capsys.readouterr().err


@pytest.fixture(params=["disk", "store"])
def root(request, tmp_path):
    if request.param == "disk":
        yield str(tmp_path)
        return
    with object_stores.memory() as (address, _):
        yield address


def test_labels_of_every_kind_come_back_from_both_formats(root):
    source = ImageFiles(["a", "b\nc,\udcff"], "two")
    for form in shards.FORMATS:
        for kind, labels in {"none": [None, None], "one": [1, 0], "several": [[], [0, 2]]}.items():
            folder = Folder(f"{root}/{form}/{kind}")
            data = {**writing.describe(source), "labels": kind}
            manifest = Manifest({}, data, {"features": [3]}, "float16", form, 2)
            assert not folder.exists()
            folder.begin(manifest)
            folder.require(manifest)
            assert folder.finished() == []
            vectors = {"features": np.arange(6, dtype=np.float16).reshape(2, 3)}
            keys = ["a", "b\nc,\\udcff"]
            with shards.writer(folder, manifest, 0) as out:
                out.write(shards.Rows(np.array([0, 1]), keys, labels, vectors))
            folder.finish(0, Entry(2, []))
            rows = Embeddings.open(folder.place).read()
            assert (rows.keys, rows.labels) == (keys, labels)
            assert rows.vectors["features"].dtype == np.float16
            np.testing.assert_array_equal(rows.vectors["features"], vectors["features"])

"""Images and tables in an object store are read as those on a disk."""

import fsspec
import numpy as np
import object_stores
import pytest
import sample_files
import tiny_run

from vit_jax import cli, stores
from vit_jax.errors import UserError
from vit_jax.input_pipeline.inputs import image_paths
from vit_jax.input_pipeline.sources import open_source


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same files on the disk and in a store."""
    folder = tmp_path_factory.mktemp("data")
    tiny_run.write_images(folder / "images", train=3, test=2)
    tiny_run.write_images(folder / "plain" / "held", train=12, test=1)
    rows = [f"images/train/{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(3)]
    (folder / "train.csv").write_text("\n".join(["path,label", *rows]))
    (folder / "test.csv").write_text("path,label\nimages/test/dog/1.png,dog\n")
    (folder / "names.txt").write_text("a.png\nb.png\n")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(folder / "arrays.npz", images=pixels, labels=np.array([0, 1, 0, 1, 1, 0]))
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"path": ["images/train/cat/0.png"], "label": ["cat"]})
    parquet.write_table(table, folder / "one.parquet")
    with object_stores.memory() as (root, _):
        yield str(folder), object_stores.upload(folder, root)


@pytest.mark.parametrize(
    ("dataset", "split"),
    [
        ("images", "train"),
        ("images", "test"),
        ("images/train", None),
        ("plain/held/train", "test"),  # a tenth of each class is held out
        ("train.csv", "train"),
        ("train.csv", "test"),
        ("arrays.npz", None),
        ("one.parquet", None),
    ],
)
def test_a_source_is_the_same_on_the_disk_and_in_a_store(places, dataset, split):
    disk, there = (open_source(f"{place}/{dataset}", split) for place in places)
    assert (len(there), there.num_classes) == (len(disk), disk.num_classes)
    assert there.description == disk.description.replace(places[0], places[1])
    for i in range(len(disk)):
        ours, theirs = dict(there[i]), dict(disk[i])
        np.testing.assert_array_equal(ours.pop("image"), theirs.pop("image"))
        assert ours == theirs | {"name": theirs["name"].replace(places[0], places[1])}


def test_array_record_is_copied_to_this_disk_once(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    sample_files.write_shard(tmp_path / "a-train.tar", range(5))
    sample_files.write_shard(tmp_path / "a-test.tar", range(5, 8))
    to = tmp_path / "records"
    shards = [f"{tmp_path}/a-train.tar", f"{tmp_path}/a-test.tar"]
    assert cli.main(["prepare", *shards, "--to", str(to)]) == 0
    there = object_stores.upload(to, f"{places[1]}/records")
    assert stores.scan(there)
    for dataset in ("", "/*train*.array_record-*"):
        for split in ("train", "test") if not dataset else ("train",):
            ours = open_source(f"{there}{dataset}", split)
            theirs = open_source(f"{to}{dataset}", split)
            assert len(ours) == len(theirs) > 0
            for i in range(len(theirs)):
                assert ours[i]["image"] == theirs[i]["image"]
                assert ours[i]["label"] == theirs[i]["label"]
    said = capsys.readouterr().err
    assert said.count(f"files of {there}, ") == 2  # one line before, one after: nothing twice
    with pytest.raises(UserError, match="no file matches memory://"):
        open_source(f"{there}/none.array_record", "train")


def test_images_that_a_command_names(places):
    for given in ("images/test", "images/test/cat/0.png", "names.txt"):
        disk, there = (image_paths([f"{place}/{given}"]) for place in places)
        assert there == [path.replace(places[0], places[1]) for path in disk]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("nothing", "there is no folder and no file memory://"),
        ("none.csv", "cannot read memory://.*none.csv: No such file or directory"),
        ("train.csv", "images that do not exist"),
        ("tar", "are read on a disk only"),
    ],
)
def test_what_is_not_there_is_one_message(places, dataset, message):
    system = fsspec.filesystem("memory")
    root = places[1].removeprefix("memory://")
    system.pipe(f"/{root}/broken/train.csv", b"path,label\nnone.png,cat\n")
    system.pipe(f"/{root}/tar/ILSVRC2012_img_val.tar", b"")
    where = "broken/train.csv" if dataset == "train.csv" else dataset
    with pytest.raises(UserError, match=message):
        open_source(f"{places[1]}/{where}", "train")

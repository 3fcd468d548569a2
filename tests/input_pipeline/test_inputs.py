"""What a command line may name as images, and tar files that are read at random."""

import json
import pickle
import tarfile

import numpy as np
import pytest
import sample_files
from image_helpers import encode

from vit_jax.errors import UserError
from vit_jax.input_pipeline.inputs import open_images
from vit_jax.input_pipeline.tar_source import TarSource, tar_files

PNG = encode(np.zeros((2, 3, 3), np.uint8))


@pytest.fixture
def shards(tmp_path):
    """Two tar files of samples, of which one tells its classes in JSON."""
    sample_files.write_shard(tmp_path / "a-000.tar", range(5), "json", folder="x/")
    sample_files.write_shard(tmp_path / "a-001.tar", range(5, 9), "json")
    return tmp_path


def test_samples_of_tar_files_are_read_at_random(shards):
    source = pickle.loads(pickle.dumps(open_images([f"{shards}/a-{{000..001}}.tar"])))
    assert isinstance(source, TarSource)
    assert (len(source), source.num_classes) == (9, 3)
    for number in (8, 0, 6, 4, 0):
        record = source[number]
        assert record["image"] == sample_files.image(number)
        assert isinstance(record["label"], int)
        assert source.int2str(record["label"]) == sample_files.NAMES[number % 3]
        assert record["name"] == source.names[number]
    assert source.names[4] == f"{shards}/a-000.tar: x/004"
    assert len(open_images([f"{shards}/*.tar"])) == 9


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        (["1", "0"], "cls", [1, 0]),
        ([None, None], "cls", [[], []]),
        (["1", None], "cls", [[0], []]),
        ([{"label": "b"}, {"label": ["a", "b"]}], "json", [[1], [0, 1]]),
        ([{"caption": "no label"}, {}], "json", [[], []]),
    ],
)
def test_labels_of_a_tar_are_what_its_samples_tell(tmp_path, labels, kind, expected):
    members = {}
    for number, label in enumerate(labels):
        members[f"{number}.png"] = PNG
        if label is not None:
            members[f"{number}.{kind}"] = (
                label if isinstance(label, str) else json.dumps(label)
            ).encode()
    sample_files.write_tar(tmp_path / "x.tar", members)
    source = open_images([str(tmp_path / "x.tar")])
    assert [source[i]["label"] for i in range(len(labels))] == expected
    names = {name for one in expected for name in (one if isinstance(one, list) else [one])}
    assert source.num_classes == len(names)


def test_bad_tar_files_are_refused(shards):
    sample_files.write_tar(shards / "b.tar", {"1.png": PNG, "2.txt": b"no image"})
    with pytest.raises(UserError, match=r"b\.tar: 2 has no image"):
        _ = open_images([f"{shards}/b.tar"])[1]
    whole = (shards / "a-000.tar").read_bytes()
    (shards / "cut.tar").write_bytes(whole[:2000])
    (shards / "noise.tar").write_bytes(b"\x01" * 2000)
    sample_files.write_shard(shards / "c.tar.gz", range(2))
    (shards / "disguised.tar").write_bytes((shards / "c.tar.gz").read_bytes())
    with tarfile.open(shards / "empty.tar", "w"):
        pass
    for name, message in {
        "cut.tar": "cut.tar is damaged",
        "noise.tar": "no tar file",
        "disguised.tar": "not compressed",
        "c.tar.gz": "vit-jax prepare .*c.tar.gz",
        "empty.tar": "no samples",
        "no.tar": "there is no tar file",
        "no-*.tar": "there is no tar file",
    }.items():
        with pytest.raises(UserError, match=message):
            open_images([f"{shards}/{name}"])
    with pytest.raises(UserError, match="twice"):
        tar_files([f"{shards}/b.tar", f"{shards}/*.tar"])
    with pytest.raises(UserError, match="alone"):
        open_images([f"{shards}/b.tar", f"{shards}/c.tar.gz"])


@pytest.fixture
def folder(tmp_path):
    """A folder of two classes; a table of its images, a list of them, and an array of pixels."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "images" / name / f"{i}.png").write_bytes(PNG)
    paths = sorted((tmp_path / "images").glob("*/*.png"))
    (tmp_path / "list.txt").write_text("\n".join(map(str, paths)))
    lines = ["path,label", *(f"{path},{path.parent.name}" for path in reversed(paths))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    np.savez(tmp_path / "x.npz", images=np.full((3, 4, 4, 3), 255, np.uint8), labels=[0, 1, 1])
    return tmp_path


@pytest.mark.parametrize(
    ("given", "how", "examples", "classes"),
    [
        ("images", {}, 4, []),
        ("images", {"labels": True}, 4, ["cat", "dog"]),
        ("images/dog", {"labels": True}, 2, []),
        ("list.txt", {"labels": True}, 4, []),
        ("table.csv", {}, 4, ["cat", "dog"]),
        ("x.npz", {}, 3, ["0", "1"]),
        ("images/cat/0.png", {}, 1, []),
        ("images", {"split": "train"}, 4, ["cat", "dog"]),
    ],
)
def test_images_and_datasets_are_told_apart(folder, given, how, examples, classes):
    if how.get("split"):  # a tenth is held out
        examples = 2
    source = open_images([str(folder / given)], **how)
    assert [source.int2str(i) for i in range(source.num_classes)] == classes
    assert len(source) == examples
    record = source[examples - 1]
    assert len(record["image"]) > 0
    assert (record["label"] == []) == (not classes)


def test_images_beside_the_folders_of_classes_are_not_lost(folder):
    (folder / "images" / "beside.png").write_bytes(PNG)
    assert len(open_images([str(folder / "images")], labels=True)) == 5


def test_what_names_no_image_is_refused(folder):
    for given, message in (
        ([], "name the images"),
        ([str(folder / "no.png")], "no image file"),
        ([str(folder / "table.csv")] * 2, "alone"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(given)
    with pytest.raises(UserError, match="of one dataset"):
        open_images(["a", "b"], "train")

"""ImageNet's tar files, and which folder a split's name opens."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from image_helpers import encode

from vit_jax import cli, input_pipeline
from vit_jax.errors import UserError
from vit_jax.input_pipeline import imagenet_tar, sources
from vit_jax.input_pipeline.imagenet_tar import ImagenetTarSource

# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "split", "opened"),
    [
        (["train", "val"], "test", "val"),
        (["train", "test"], "test", "test"),
        (["train", "val", "test"], "test", "test"),
        (["train", "val", "test"], "val", "val"),
        (["train", "validation"], "val", "validation"),
        (["train", "val"], "validation", "val"),
        (["train", "valid"], "test", "valid"),
        (["train", "test"], "train[:98%]", "train"),
    ],
)
def test_a_folders_splits(tmp_path, folders, split, opened):
    for name in folders:
        place = tmp_path / name / "ant"
        place.mkdir(parents=True)
        (place / "1.png").write_bytes(encode(np.zeros((1, 1, 3), np.uint8)))
    source = sources.open_source(str(tmp_path), split)
    assert source[0]["name"] == str(tmp_path / opened / "ant" / "1.png")
    info = input_pipeline.get_dataset_info(str(tmp_path), split)
    assert info["examples_glob"] == str(tmp_path / opened / "*" / "*")


# --- ImageNet ------------------------------------------------------------------------------------

IDS = ["n02", "n01", "n03"]  # In the order that the devkit numbers them.


def pack(files: dict[str, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def devkit(path, truth: list[int]) -> None:
    from scipy import io as scipy_io

    rows = [(i + 1, name, 0) for i, name in enumerate(IDS)] + [(4, "n99", 3)]
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": np.array(rows, kind).reshape(-1, 1)})
    content = pack(
        {
            "kit/data/meta.mat": meta.getvalue(),
            "kit/data/ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, truth)).encode(),
        }
    )
    path.write_bytes(__import__("gzip").compress(content))


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """Three classes of two images, and four validation images of classes 3, 1, 2, 3."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "imagenet"
    root.mkdir()
    classes = {
        f"{name}.tar": pack({f"{name}_{i}.JPEG": f"{name} {i}".encode() * 300 for i in (2, 1)})
        for name in IDS
    }
    (root / imagenet_tar.TRAIN).write_bytes(pack(classes))
    val = {f"ILSVRC2012_val_{i:08}.JPEG": f"val {i}".encode() for i in (3, 1, 4, 2)}
    (root / imagenet_tar.VAL).write_bytes(pack(val))
    devkit(root / imagenet_tar.DEVKIT, [3, 1, 2, 3])
    return root


def contents(source) -> list[tuple[bytes, str]]:
    records = [source[i] for i in range(len(source))]
    return [(record["image"], source.int2str(record["label"])) for record in records]


def test_imagenet_train(imagenet):
    source = ImagenetTarSource(imagenet, "train")
    assert [source.int2str(i) for i in range(source.num_classes)] == ["n01", "n02", "n03"]
    expected = [(f"{n} {i}".encode() * 300, n) for n in ("n01", "n02", "n03") for i in (1, 2)]
    assert contents(source) == expected
    assert source[2]["name"].endswith("ILSVRC2012_img_train.tar:n02_1.JPEG")
    assert contents(pickle.loads(pickle.dumps(source))) == expected


@pytest.mark.parametrize("labels", ["devkit", "file"])
@pytest.mark.parametrize("with_train", [True, False])
def test_imagenet_val(imagenet, labels, with_train):
    if labels == "file":
        (imagenet / imagenet_tar.DEVKIT).unlink()
        (imagenet / imagenet_tar.VAL_LABELS).write_text("n03\nn02\nn01\nn03\n")
    if not with_train:
        (imagenet / imagenet_tar.TRAIN).unlink()
    source = sources.open_source(str(imagenet), "validation")
    ids = ["n03", "n02", "n01", "n03"]
    assert contents(source) == [(f"val {i + 1}".encode(), name) for i, name in enumerate(ids)]
    assert source.num_classes == 3


def test_the_index_is_made_once(imagenet, monkeypatch):
    first = contents(ImagenetTarSource(imagenet, "train"))
    assert (imagenet / f"{imagenet_tar.TRAIN}.index.npz").is_file()
    assert not [name for name in os.listdir(imagenet) if name.startswith(".")]
    monkeypatch.setattr(imagenet_tar, "_make_index", lambda *_: pytest.fail("made again"))
    assert contents(ImagenetTarSource(imagenet, "train")) == first


def test_an_index_that_does_not_fit_is_made_again(imagenet):
    index = imagenet / f"{imagenet_tar.TRAIN}.index.npz"
    index.write_bytes(b"half an index")
    assert len(ImagenetTarSource(imagenet, "train")) == 6
    (imagenet / imagenet_tar.TRAIN).write_bytes(pack({"n07.tar": pack({"n07_1.JPEG": b"x"})}))
    assert contents(ImagenetTarSource(imagenet, "train")) == [(b"x", "n07")]


def test_a_folder_that_cannot_be_written(imagenet, tmp_path, monkeypatch):
    save = imagenet_tar._save

    def refuse(place, index):
        if place.parent == imagenet:
            raise PermissionError(13, "Permission denied")
        save(place, index)

    monkeypatch.setattr(imagenet_tar, "_save", refuse)
    first = contents(ImagenetTarSource(imagenet, "train"))
    assert len(os.listdir(tmp_path / "cache" / "vit_jax")) == 1
    monkeypatch.setattr(imagenet_tar, "_make_index", lambda *_: pytest.fail("made again"))
    assert contents(ImagenetTarSource(imagenet, "train")) == first


@pytest.mark.parametrize(
    ("broken", "split", "message"),
    [
        ({imagenet_tar.TRAIN: b"no tar at all" * 100}, "train", "damaged, or no tar file"),
        ({imagenet_tar.TRAIN: pack({"notes.txt": b""})}, "train", "no images in"),
        ({imagenet_tar.TRAIN: None}, "train", "cannot read .*img_train"),
        ({imagenet_tar.VAL: None}, "test", "cannot read .*img_val"),
        ({imagenet_tar.DEVKIT: None}, "test", "put ILSVRC2012_devkit_t12.tar.gz beside it"),
        ({imagenet_tar.DEVKIT: b"?"}, "test", "cannot read the classes"),
        ({imagenet_tar.VAL_LABELS: b"n01 n02"}, "test", "2 classes for the 4 images"),
        ({imagenet_tar.VAL_LABELS: b"n01 n02 n03 n44"}, "test", r"lacks: \['n44'\]"),
        ({}, "minival", "no split 'minival'"),
    ],
)
def test_bad_imagenet(imagenet, broken, split, message):
    for name, content in broken.items():
        if content is None:
            (imagenet / name).unlink()
        else:
            (imagenet / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        sources.open_source(str(imagenet), split)


def test_a_tar_that_was_cut_off(imagenet):
    tar = imagenet / imagenet_tar.TRAIN
    whole = tar.read_bytes()
    for length in (len(whole) // 3, len(whole) // 2):
        tar.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"damaged|cut off"):
            ImagenetTarSource(imagenet, "train")
        assert not (imagenet / f"{imagenet_tar.TRAIN}.index.npz").exists()


# --- vit-jax prepare -----------------------------------------------------------------------------


def test_prepare(imagenet, tmp_path, capsys):
    assert cli.main(["prepare", "digits", "--tfds-data-dir", str(tmp_path / "tfds")]) == 0
    out = capsys.readouterr().out
    assert "1,437" in out
    assert str(tmp_path / "tfds" / "digits" / "1.0.0") in out
    assert cli.main(["prepare", str(imagenet)]) == 0
    out = capsys.readouterr().out.split()
    assert [out[out.index(split) + 1] for split in ("train", "val")] == ["6", "4"]
    assert (imagenet / f"{imagenet_tar.VAL}.index.npz").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [("digit", "Did you mean 'digits'"), (".", "a folder of images needs no preparing")],
)
def test_prepare_refuses(name, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", name]) == 2
    assert message in capsys.readouterr().err

"""TFDS without TensorFlow, the digits, and image folders: what they hold, what they refuse."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from image_helpers import TEST_PER_CLASS, TRAIN_PER_CLASS, encode

from vit_jax import input_pipeline
from vit_jax.errors import UserError
from vit_jax.input_pipeline import tfds_source
from vit_jax.input_pipeline.records import IMAGE_SUFFIXES
from vit_jax.input_pipeline.sources import FolderSource, TfdsSource, open_source
from vit_jax.input_pipeline.transforms import decode_image


def run(code: str, *arguments: str) -> str:
    """Runs Python in a process of its own, where TensorFlow and torch are not to be found."""
    prelude = """
        import sys
        class Without:
            def __init__(self, finder):
                self.finder = finder
            def __getattr__(self, name):
                return getattr(self.finder, name)
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] not in ("tensorflow", "torch"):
                    return self.finder.find_spec(name, path, target)
        sys.meta_path[:] = map(Without, sys.meta_path)
    """
    script = textwrap.dedent(prelude) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_light_and_reading_needs_no_tensorflow(digits_dir):
    code = """
        import vit_jax.input_pipeline as ip
        heavy = {"jax", "grain", "cv2", "PIL", "tensorflow_datasets", "sklearn"}
        heavy &= sys.modules.keys()
        assert not heavy, heavy
        info = ip.get_dataset_info("digits", "test", data_dir=sys.argv[1])
        print(info["num_examples"], info["num_classes"], info["int2str"](7), info["examples_glob"])
        assert "sklearn" not in sys.modules, "the prepared dataset needs no scikit-learn"
    """
    assert run(code, digits_dir).split() == ["360", "10", "7", "None"]


# --- the digits ----------------------------------------------------------------------------------


def test_digits_are_scikit_learns(digits_dir):
    """Both splits together are the 1,797 images, each once: the splits are disjoint."""
    from sklearn.datasets import load_digits

    splits = {split: TfdsSource("digits", split, digits_dir) for split in ("train", "test")}
    assert {split: len(source) for split, source in splits.items()} == {"train": 1437, "test": 360}
    stored = [
        (decode_image(source[i]["image"])[..., 0].tobytes(), source[i]["label"])
        for source in splits.values()
        for i in range(len(source))
    ]
    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    original = [(i.tobytes(), int(t)) for i, t in zip(pixels, digits.target, strict=True)]
    assert len(set(original)) == len(original)
    assert sorted(stored) == sorted(original)


def test_digits_split_is_stratified(digits_dir):
    counts = {}
    for split in ("train", "test"):
        source = TfdsSource("digits", split, digits_dir)
        labels = [source[i]["label"] for i in range(len(source))]
        counts[split] = np.bincount(labels, minlength=10)
    expected = (counts["train"] + counts["test"]) * 360 / 1797
    assert np.abs(counts["test"] - expected).max() < 1


def test_stratified_choice_is_seeded():
    from vit_jax.input_pipeline.digits import stratified

    labels = np.repeat([0, 1, 2], [50, 30, 20])
    picked = stratified(labels, 11, seed=3)
    np.testing.assert_array_equal(picked, stratified(labels, 11, seed=3))
    assert not np.array_equal(picked, stratified(labels, 11, seed=4))
    assert np.bincount(labels[picked]).tolist() == [6, 3, 2]
    assert len(set(picked)) == 11


def test_preparing_warns_of_nothing(tmp_path, caplog):
    assert len(TfdsSource("digits", "test", tmp_path)) == 360
    assert [one.getMessage() for one in caplog.records if one.levelname != "INFO"] == []


def test_digits_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r'pip install "vit-jax\[demo\]"'):
        TfdsSource("digits", "train", tmp_path)
    assert not (tmp_path / "digits" / "1.0.0").exists()


def test_interrupted_preparation_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    from vit_jax.input_pipeline import digits

    def fail(self, images, labels, rows):
        yield 0, {"image": encode(images[0]), "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(digits.Digits, "_generate_examples", fail)
        with pytest.raises(KeyboardInterrupt):
            TfdsSource("digits", "train", tmp_path)
    assert len(TfdsSource("digits", "train", tmp_path)) == 1437


def test_concurrent_preparation(tmp_path):
    code = """
        import sys
        from vit_jax.input_pipeline.sources import TfdsSource
        print(len(TfdsSource("digits", "train", sys.argv[1])))
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in outputs] == ["1437\n"] * 3, outputs
    left = sorted(entry.name for entry in (tmp_path / "digits").iterdir())
    assert left == ["1.0.0"]


def test_losing_the_race_is_no_error(tmp_path, monkeypatch, digits_dir):
    """Another process finishes the dataset while this one prepares it."""

    def overtaken(builder, dataset, manual_dir):
        shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
        raise OSError("Directory not empty")

    monkeypatch.setattr(tfds_source, "_prepare", overtaken)
    assert len(TfdsSource("digits", "test", tmp_path)) == 360


# --- TensorFlow Datasets -------------------------------------------------------------------------


def test_split_syntax(digits_dir):
    whole = TfdsSource("digits", "train", digits_dir)
    head = TfdsSource("digits", "train[:98%]", digits_dir)
    tail = TfdsSource("digits", "train[98%:]", digits_dir)
    assert len(head) + len(tail) == len(whole)
    assert head[len(head) - 1]["image"] == whole[len(head) - 1]["image"]
    assert tail[0]["image"] == whole[len(head)]["image"]


def test_sources_pickle(digits_dir, folder):
    for source in (TfdsSource("digits", "test", digits_dir), FolderSource(folder / "test")):
        copy = pickle.loads(pickle.dumps(source))
        assert copy[3] == source[3]
        assert copy.int2str(1) == source.int2str(1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar1", "unknown dataset 'cifar1'.*Did you mean 'cifar10"),
        ("digit", "Did you mean 'digits'"),
        ("/nowhere/at/all", "neither an existing directory nor"),
        ("my photos", "neither an existing directory nor"),
        ("kaggle:birds", "neither an existing directory nor"),
        ("cifar10:9.9.9", "3.0.2"),
        ("", "neither an existing directory nor"),
    ],
)
def test_unknown_dataset(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        TfdsSource(name, "train", tmp_path)


def test_unprepared_dataset_without_a_network(tmp_path, monkeypatch):
    import socket

    def no_network(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"'cifar10' is not prepared in .*cs\.toronto\.edu"
    ) as error:
        input_pipeline.get_tfds_info("cifar10", "train", data_dir=tmp_path)
    assert time.monotonic() - start < 10
    assert str(tmp_path / "cifar10" / "3.0.2") in str(error.value)
    assert "tfds build cifar10 --file_format=array_record" in str(error.value)


def test_manual_download_is_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"'imagenet2012' is not prepared in .*manual"):
        TfdsSource("imagenet2012", "train", tmp_path, tmp_path)


def test_unknown_split(digits_dir):
    for split in ("valid", "train[:", "train[:5%]+valid"):
        with pytest.raises(UserError, match=r"no split .*'train': 1437, 'test': 360"):
            TfdsSource("digits", split, digits_dir)


def test_tfrecord_cannot_be_read(tmp_path, digits_dir):
    shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
    prepared = tmp_path / "digits" / "1.0.0"
    for path in prepared.glob("*.array_record*"):
        path.rename(prepared / path.name.replace("array_record", "tfrecord"))
    info = json.loads((prepared / "dataset_info.json").read_text())
    (prepared / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"tfrecord.*convert_format .*--out_file_format=array"):
        TfdsSource("digits", "train", tmp_path)


def test_half_written_directory(tmp_path):
    (tmp_path / "digits" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"incomplete.*delete that directory"):
        TfdsSource("digits", "train", tmp_path)


def test_dataset_that_is_no_image_classification(tmp_path):
    import tensorflow_datasets as tfds

    class Sentences(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"text": "hello"}

    with pytest.raises(UserError, match=r"expected the features 'image' and 'label'.*\['text'\]"):
        TfdsSource("sentences", "train", tmp_path)


def test_mocked_data(tmp_path):
    """`tfds.testing.mock_data`, which the original's tests use, works without TensorFlow."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=5):
        source = TfdsSource("cifar10", "train[:98%]", tmp_path)
        info = input_pipeline.get_dataset_info("cifar10", "test")
    assert len(source) == info["num_examples"] == 5
    assert info["num_classes"] == 10
    assert source[0]["image"].shape == (32, 32, 3)


# --- folders -------------------------------------------------------------------------------------


def test_folder(folder):
    source = FolderSource(folder / "train")
    assert len(source) == 2 * TRAIN_PER_CLASS
    assert [source.int2str(i) for i in range(source.num_classes)] == ["china", "flower"]
    assert [source[i]["label"] for i in range(len(source))] == [0] * 8 + [1] * 8
    assert len({source[i]["image"] for i in range(len(source))}) == 2 * TRAIN_PER_CLASS
    assert source[0]["name"].endswith("china/0.jpg")


def test_folder_info(folder):
    info = input_pipeline.get_dataset_info(str(folder), "test")
    assert info == input_pipeline.get_directory_info(folder / "test") | {"int2str": info["int2str"]}
    assert (info["num_examples"], info["num_classes"]) == (2 * TEST_PER_CLASS, 2)
    assert info["int2str"](1) == "flower"
    assert info["examples_glob"] == str(folder / "test" / "*" / "*")


def tree(root, **classes: list[str]) -> None:
    for place, files in classes.items():
        directory = root.joinpath(*place.split("__"))
        directory.mkdir(parents=True, exist_ok=True)
        for name in files:
            (directory / name).write_bytes(encode(np.zeros((1, 1, 3), np.uint8)))


def test_test_split_has_trains_numbers(tmp_path):
    tree(tmp_path, train__ant=["1.png"], train__bee=["1.png"], test__bee=["1.png", "2.png"])
    source = FolderSource(tmp_path / "test")
    assert source.num_classes == 2
    assert [source[i]["label"] for i in range(len(source))] == [1, 1]


def test_new_files_are_seen(tmp_path):
    tree(tmp_path, train__ant=["1.png"])
    assert FolderSource(tmp_path / "train").num_classes == 1
    tree(tmp_path, train__bee=["1.png"])
    (tmp_path / "train" / "ant" / "2.png").write_bytes(b"")
    source = FolderSource(tmp_path / "train")
    assert (source.num_classes, len(source)) == (2, 3)


def test_whatever_pillow_reads_is_an_image_at_any_depth(tmp_path, caplog):
    tree(
        tmp_path,
        train__ant=["1.bmp", "2.GIF", "3.tif", "4.tiff", "5.jfif", "._1.bmp", ".DS_Store"],
        train__ant__old__2019=["6.jpe", "7.heic", "notes.txt", "LICENSE"],
        train__bee=["1.png"],
        train__bee__hidden=[".8.png"],
        train__bee__x=["9.avif"],
        train=["loose.png", "readme.md"],
    )
    (tmp_path / "train" / "bee" / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "train" / "bee" / "x" / "up").symlink_to(tmp_path / "train" / "bee")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    source = FolderSource(tmp_path / "train")
    names = [os.path.relpath(source[i]["name"], tmp_path / "train") for i in range(len(source))]
    assert names == [
        *(f"ant/{name}" for name in ("1.bmp", "2.GIF", "3.tif", "4.tiff", "5.jfif")),
        *("ant/old/2019/6.jpe", "bee/1.png", "bee/x/9.avif"),
    ]
    assert source.labels == [0] * 6 + [1] * 2
    FolderSource(tmp_path / "train")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "8 images are read, 8 files are left out: 2 hidden" in warning
    for count in ("1 .heic", "1 .txt", "1 without a suffix", "1 broken links", "1 .md"):
        assert count in warning
    assert "1 images outside of the class folders" in warning


def test_suffixes_are_pillows():
    """What Pillow opens, without what it only recognises and what needs another program."""
    from PIL import Image

    Image.init()
    opens = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    others = [".bufr", ".emf", ".eps", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".ps", ".wmf"]
    assert opens - IMAGE_SUFFIXES == set(others)
    assert IMAGE_SUFFIXES - opens == {".mpo"}  # Read as JPEG.


@pytest.mark.parametrize(
    ("classes", "mode", "message"),
    [
        ({}, "train", "cannot read the image folder .*train"),
        ({"train": []}, "train", "no images in .*train"),
        ({"train__ant": []}, "train", "no images in .*train"),
        ({"train__ant": ["notes.txt"]}, "train", "no images in .*train.*What is there: 1 .txt"),
        ({"train__ant": ["1.png"], "test__bee": ["1.png"]}, "test", "train lacks: bee"),
        (
            {"train__ant": ["1.png"], "train__bee": ["1.heic", "._2.png"], "train__wasp": []},
            "train",
            r"2 of the 3 class folders of .*train hold no image: bee \(1 .heic, 1 hidden\), wasp",
        ),
        ({"train__ant": ["1.png"], "test__ant": []}, "test", "no images in .*test"),
        ({"train__ant": ["1.png"], "test": []}, "test", "no images in .*test"),
        ({"birds__train__ant": ["1.png"]}, "train", "splits or datasets, not classes: birds"),
        ({"Training__ant": ["1.png"]}, "train", "cannot read the image folder .*train"),
        ({"train__ant": ["1.png"], "train__ant__test": ["1.png"]}, "train", "not classes: ant"),
        ({"test__ant": ["1.png"]}, "train", "cannot read the image folder .*train"),
        ({"train__ant": ["1.png"], "test__ant": ["1.png"]}, "small", "folder .*small"),
    ],
)
def test_bad_folder(tmp_path, classes, mode, message):
    tree(tmp_path, **classes)
    with pytest.raises(UserError, match=message) as error:
        input_pipeline.get_dataset_info(str(tmp_path), mode)
    assert len(str(error.value)) < 1200


# --- no test split -------------------------------------------------------------------------------


LAYOUTS = {
    "no test folder": ("train__", ""),
    "the folder of the classes": ("", ""),
    "test images without classes": ("train__", "test"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tenth_of_each_class_is_held_out(tmp_path, caplog, layout):
    place, unlabelled = LAYOUTS[layout]
    sizes = {"ant": 30, "bee": 6, "cow": 1}
    files = {f"{place}{n}": [f"{i:02}.png" for i in range(size)] for n, size in sizes.items()}
    tree(tmp_path, **files, **({unlabelled: ["1.png"]} if unlabelled else {}))
    parts = {}
    for split in ("train", "test"):
        source = open_source(str(tmp_path), split)
        assert [source.int2str(i) for i in range(3)] == ["ant", "bee", "cow"]
        assert "the tenth of each class that seed 0 holds out" in source.description
        parts[split] = [source[i]["name"] for i in range(len(source))]
        again = open_source(str(tmp_path), split)
        assert [again[i]["name"] for i in range(len(again))] == parts[split]
    assert not set(parts["train"]) & set(parts["test"])
    assert len(parts["train"]) == 37 - 4
    labels = [source[i]["label"] for i in range(len(source))]
    assert np.bincount(labels).tolist() == [3, 1]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "held out of training" in warning
    assert ("has no labels" in warning) == bool(unlabelled)


def test_a_folder_of_classes_is_read_whole_unless_a_split_is_asked_for(tmp_path):
    tree(tmp_path, val__ant=["1.png", "2.png"], val__bee=["3.png"], train__wasp=["1.png"])
    source = open_source(str(tmp_path / "val"))
    assert (len(source), source.num_classes) == (3, 2)  # `train` beside it is another dataset.


@pytest.mark.parametrize("place", ["train__", ""])
def test_a_class_may_be_called_train(tmp_path, place):
    tree(tmp_path, **{f"{place}{name}": ["1.png", "2.png"] for name in ("bus", "car", "train")})
    source = open_source(str(tmp_path), "train")
    assert [source.int2str(i) for i in range(3)] == ["bus", "car", "train"]
    assert len(source) == 3  # The other three are held out.


def test_a_class_whose_name_is_no_text(tmp_path):
    tree(tmp_path, **{os.fsdecode(b"train__\xfcbung"): ["1.png"]})
    with pytest.raises(UserError, match=r"no UTF-8, .*: '.*udcfcbung'"):
        FolderSource(tmp_path / "train")


def test_file_that_vanishes(tmp_path):
    tree(tmp_path, train__ant=["1.png"])
    source = FolderSource(tmp_path / "train")
    os.remove(source[0]["name"])
    with pytest.raises(UserError, match=r"cannot read the image .*ant/1\.png"):
        source[0]

"""ImageNet-ReaL's labels, on a small file of the same form."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from image_helpers import encode

from vit_jax import input_pipeline
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.input_pipeline.folder_source import FolderSource
from vit_jax.input_pipeline.real_labels import RealLabels

# Labels of images 1 to 6; the folder has five of these images, in another order.
LABELS = [[2], [], [0, 2], [1], [1, 0], [0]]
IMAGES = {"a": (5, 2), "b": (1, 6), "c": (3,)}


@pytest.fixture
def val(tmp_path) -> Path:
    """`val/<class>/ILSVRC2012_val_<number>.JPEG`, with `real.json` beside it."""
    for name, numbers in IMAGES.items():
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        for number in numbers:
            image = np.full((8, 8, 3), 10 * number, np.uint8)
            (folder / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(encode(image, "jpeg"))
    (tmp_path / "real.json").write_text(json.dumps(LABELS))
    return tmp_path / "val"


def test_labels_go_by_the_number_in_the_name(val):
    source = FolderSource(val)
    real = RealLabels(source, val.parent / "real.json")
    for one in (real, pickle.loads(pickle.dumps(real))):
        assert [one[i]["label"] for i in range(len(one))] == [[], [1, 0], [2], [0], [0, 2]]
    assert [source[i]["label"] for i in range(5)] == [0, 0, 1, 1, 2]  # Their own are others.
    assert real.num_classes == 3
    assert real.int2str(2) == "c"
    assert real[3]["image"] == source[3]["image"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_counts_any_label_and_no_unlabelled_image(val, num_workers):
    from vit_jax.evaluate.top_k import counts

    (val.parent / "train").symlink_to(val)
    config = common.get_config()
    config.dataset, config.pp.crop, config.batch_eval = str(val.parent), 8, 4
    config.data.real_labels, config.data.num_workers = str(val.parent / "real.json"), num_workers
    train_set, test_set = input_pipeline.get_datasets(config)
    train_batch = next(train_set.iterate())
    np.testing.assert_array_equal(train_batch["label"].sum(axis=1), 1)  # Only the test set's.
    batches = list(test_set)
    labels = np.concatenate([batch["label"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    expected = [[0, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], *[[0, 0, 0]] * 3]
    np.testing.assert_array_equal(labels, expected)
    # Always the first class: right for three of the four with labels; by the folders, for two of
    # five.
    logits = np.tile(np.float32([1, 0, 0]), (8, 1))
    found = counts(logits, labels, mask)
    assert (int(found["counted"]), int(found["correct"])) == (4, 3)


def test_tfds_names_its_files(monkeypatch, tmp_path, val):
    """`imagenet2012` has a feature 'file_name'; without it the numbers are not known."""
    from vit_jax.input_pipeline import tfds_source

    record = {"image": b"", "label": 1, "file_name": b"ILSVRC2012_val_00000003.JPEG"}
    records = [record]
    monkeypatch.setattr(tfds_source, "_data_source", lambda *_: records)
    source = tfds_source.TfdsSource("digits", "test", tmp_path)
    assert source[0]["name"] == "digits[test] example 0 (ILSVRC2012_val_00000003.JPEG)"
    assert RealLabels(source, val.parent / "real.json")[0]["label"] == [0, 2]
    records[0] = {"image": b"", "label": 1}
    assert source[0]["name"] == "digits[test] example 0"
    with pytest.raises(UserError, match=r"no labels for digits\[test\] example 0: expected"):
        RealLabels(source, val.parent / "real.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[1], [2]", "is no JSON file"),
        ('{"1": [2]}', "expected a list of lists of class numbers.*got no list"),
        ("[1, 2]", "got 1 for image 1"),
        ('[[1], ["2"]]', r'got \["2"\] for image 2'),
        ("[[1], [-2]]", r"got \[-2\] for image 2"),
        ("[[1], [true]]", r"got \[true\] for image 2"),
        ("[[], []]", "got no label at all"),
        ("[]", "got no label at all"),
        ("[[1], [3]]", "has the class 3, the images only 3 classes"),
        ("[[1]]", "has no labels for .*val_00000002.*numbers up to 00000001"),
        (None, "cannot read the labels .*real.json: No such file"),
    ],
)
def test_bad_file_is_one_clear_message(val, content, message):
    file = val.parent / "real.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=message):
        RealLabels(FolderSource(val), file)


def test_other_images_are_refused_at_once(val, folder):
    with pytest.raises(UserError, match=r"no labels for .*: expected the name ILSVRC2012_val_"):
        RealLabels(FolderSource(folder / "test"), _labels_of_two(val))


def _labels_of_two(val) -> Path:
    file = val.parent / "two.json"
    file.write_text("[[0], [1]]")
    return file

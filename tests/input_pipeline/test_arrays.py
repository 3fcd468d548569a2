"""Tables of pixels and `.npz` arrays: what they hold, what they refuse."""

import pickle

import numpy as np
import pytest

from vit_jax import input_pipeline
from vit_jax.errors import UserError
from vit_jax.input_pipeline import sources
from vit_jax.input_pipeline.classes import names_of
from vit_jax.input_pipeline.transforms import Decode

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
LABELS = np.arange(20) % 10
PIXELS = [f"pixel{i}" for i in range(784)]


def table(path, columns: dict[str, np.ndarray] | list[np.ndarray], mark: str = ",") -> str:
    header, values = "", columns
    if isinstance(columns, dict):
        header, values = mark.join(columns) + "\n", list(columns.values())
    rows = zip(*(np.asarray(column).tolist() for column in values), strict=True)
    path.write_text(header + "".join(mark.join(map(str, row)) + "\n" for row in rows))
    return str(path)


def pixels(images=IMAGES, order=range(784)) -> dict[str, np.ndarray]:
    flat = images.reshape(len(images), -1)
    return {PIXELS[i]: flat[:, i] for i in order}


def check(source, labels=LABELS) -> None:
    assert len(source) == 20
    assert names_of(source) == [str(i) for i in range(10)]
    for one in (source, pickle.loads(pickle.dumps(source))):
        np.testing.assert_array_equal([one[i]["image"][..., 0] for i in range(20)], IMAGES)
        assert [one[i]["label"] for i in range(20)] == labels.tolist()
    rgb = Decode()(source[3])["image"]
    np.testing.assert_array_equal(rgb, np.repeat(IMAGES[3][..., None], 3, axis=-1))


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize(
    "columns",
    [
        {"label": LABELS, **pixels()},
        {**pixels(), "Class": LABELS},
        {"id": LABELS * 0, "label": LABELS, **pixels(order=range(783, -1, -1))},
        {"label": LABELS, **{f"{i // 28}x{i % 28}": p for i, p in enumerate(pixels().values())}},
    ],
)
def test_a_table_of_pixels(tmp_path, columns, mark):
    check(sources.open_source(table(tmp_path / "train.csv", columns, mark)))


@pytest.mark.parametrize("last", [False, True])
def test_a_table_without_names(tmp_path, last):
    images = IMAGES.copy()
    images[:, 0, 0] = images[:, -1, -1] = 0  # A corner that is always black is no label.
    flat = list(images.reshape(20, -1).T)
    columns = [*flat, LABELS] if last else [LABELS, *flat]
    source = sources.open_source(table(tmp_path / "train.csv", columns))
    np.testing.assert_array_equal([source[i]["image"][..., 0] for i in range(20)], images)
    assert [source[i]["label"] for i in range(20)] == LABELS.tolist()


def test_a_table_without_labels(tmp_path):
    file = table(tmp_path / "test.csv", pixels())
    source = sources.open_file(file)
    assert (len(source), source.num_classes, source[0]["label"]) == (20, 0, [])
    np.testing.assert_array_equal(source[7]["image"][..., 0], IMAGES[7])
    with pytest.raises(UserError, match=r"test\.csv has no labels"):
        sources.open_source(file)
    for split in (None, "test"):
        assert len(sources.open_source(file, split, labelled=False)) == 20


def test_a_run_on_a_table_with_unlabelled_test_images_beside_it(tmp_path, config, caplog):
    config.dataset = table(tmp_path / "train.csv", {"label": LABELS, **pixels()})
    table(tmp_path / "test.csv", pixels())
    config.pp.crop, config.pp.augment, config.batch, config.batch_eval = 28, "none", 10, 10
    train_set, test_set = input_pipeline.get_datasets(config)
    assert (train_set.num_examples, test_set.num_examples) == (10, 10)
    assert "test.csv has no labels; a tenth of the images" in caplog.text
    (batch,) = list(test_set)
    assert sorted(batch["label"].argmax(axis=1)) == list(range(10))  # One of two in each class.
    assert next(train_set.iterate())["image"].shape == (10, 28, 28, 3)


ARRAYS = {
    "images and labels": {"images": IMAGES, "labels": LABELS},
    "x and y": {"x": IMAGES[..., None], "y": LABELS[:, None]},
    "no names": {"arr_0": IMAGES, "arr_1": LABELS},
    "flat": {"data": IMAGES.reshape(20, 784), "target": LABELS.astype(float)},
    "other integers": {"images": IMAGES.astype(np.int64), "labels": LABELS.astype(str)},
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_npz(tmp_path, kind):
    np.savez(tmp_path / "a.npz", **ARRAYS[kind])
    check(sources.open_source(str(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    "names", ["x_train y_train x_test y_test", "train_images train_labels test_images test_labels"]
)
def test_npz_of_several_splits(tmp_path, names):
    values = (IMAGES[:10], LABELS[:10], IMAGES[10:15], LABELS[10:15])
    np.savez(tmp_path / "a.npz", **dict(zip(names.split(), values, strict=True)))
    for split, images, count in (("train", IMAGES[:10], 10), ("test", IMAGES[10:], 5)):
        source = sources.open_source(str(tmp_path / "a.npz"), split)
        assert (len(source), source.num_classes) == (count, 10)  # Train's classes.
        np.testing.assert_array_equal(source[4]["image"][..., 0], images[4])
        assert names.split()[0 if split == "train" else 2] in source.description
    assert len(sources.open_source(str(tmp_path / "a.npz"))) == 5


def test_npz_of_colours_and_class_names(tmp_path):
    images = RNG.integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    names = np.array(["cat", "ant", "dog"])
    np.savez(tmp_path / "a.npz", images=images, labels=[1, 0, 1], class_names=names)
    source = sources.open_source(str(tmp_path / "a.npz"))
    assert [source.int2str(source[i]["label"]) for i in range(3)] == ["ant", "cat", "ant"]
    assert names_of(source) == names.tolist()
    np.testing.assert_array_equal(source[2]["image"], images[2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES / 255, "labels": LABELS}, "got float64; nothing says which value"),
        ({"images": IMAGES // 16, "labels": LABELS}, "these are of 0 to 15. Scale them"),
        ({"images": IMAGES.astype(int) - 1, "labels": LABELS}, "these are of -1 to"),
        ({"images": IMAGES[:, None], "labels": LABELS}, r"transpose\(0, 2, 3, 1\)"),
        ({"images": IMAGES, "labels": LABELS[:5]}, r"one label for each of the 20 images, got"),
        ({"images": IMAGES, "labels": np.eye(20)}, r"got the shape \[20, 20\]"),
        ({"pictures": IMAGES}, r"has no array of images: .*it has pictures"),
        ({"images": IMAGES, "x": IMAGES}, "which of its arrays images, x is meant"),
        ({"images": IMAGES}, "has no labels"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "no images in"),
        ({"images": np.array([{}]), "labels": LABELS}, "cannot read images: Object arrays"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        sources.open_source(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": LABELS, **pixels(order=range(783))}, "783 columns of pixels make no square"),
        ({"label": LABELS, **pixels(IMAGES / 255)}, "whole numbers of 0 to 255; column pixel0 has"),
        ({"label": LABELS, **pixels(IMAGES // 16)}, "these are of 0 to 15"),
        ([LABELS, *IMAGES.reshape(20, -1).T], "the first or the last; its values do not tell"),
        ({"foto": LABELS, **pixels()}, "785 columns of pixels .*column must be called path"),
    ],
)
def test_bad_table_of_pixels(tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        sources.open_source(table(tmp_path / "train.csv", columns))


def test_no_npz_at_all(tmp_path):
    for content in (b"", b"no zip", b"PK\x03\x04"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.npz"):
            sources.open_source(str(tmp_path / "a.npz"))
    with pytest.raises(UserError, match="No such file"):
        sources.open_source(str(tmp_path / "b.npz"))

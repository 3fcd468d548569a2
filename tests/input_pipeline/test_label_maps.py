"""Label maps: their files, and that they follow what augmentation does to the image."""

import os

import fsspec
import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import input_pipeline
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.input_pipeline import label_maps, recipes
from vit_jax.input_pipeline import transforms as tr
from vit_jax.input_pipeline.operations import MOVES, SPACES
from vit_jax.train.token_labels import dense_scores, roi_align

CROP, GRID = 64, (4, 4)


def plane(height, width):
    """Shares of the way from the left and from the top, [2, height, width]."""
    y, x = ((np.arange(n) + 0.5) / n for n in (height, width))
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None]))


def places(height=200, width=300):
    """A record whose pixels say where they are, in red and green, and whose map says it too."""
    map_ = np.stack([plane(20, 20), np.broadcast_to(np.arange(2.0)[:, None, None], (2, 20, 20))])
    pixels = np.concatenate([plane(height, width) * 250, np.full((1, height, width), 250)])
    return {
        "image": np.rint(pixels).astype(np.uint8).transpose(1, 2, 0),
        "label": 0,
        label_maps.MAP: map_.astype(np.float32),
        label_maps.WINDOW: np.array([0, 0, 1, 1], np.float32),
    }


@jax.jit
def labels(maps, windows):
    return roi_align(dense_scores(maps, 2), windows, GRID)


def seen(image):
    """What the cells of an image say of their place, [rows, columns, 2]."""
    cells = image.reshape(GRID[0], CROP // GRID[0], GRID[1], CROP // GRID[1], 3)
    return cells.mean((1, 3))[..., :2] / 250


@pytest.mark.parametrize("augment", recipes._TELL_PLACES)
def test_the_map_follows_the_image(augment, monkeypatch):
    only_moves = {name: SPACES["timm"].levels[name] for name in MOVES}
    monkeypatch.setitem(SPACES, "timm", SPACES["timm"].__class__(only_moves, 10, 0.7))
    pp = common.get_config().pp.unlock()
    pp.crop, pp.augment, pp.area_min, pp.randaug.space = CROP, augment, 0.2, "timm"
    if augment in ("crop", "none"):
        pp.resize, pp.resize_shape = CROP + 20, "shortest"
    steps, mirrored = tr.Chain(recipes.AUGMENTATIONS[augment](pp)), 0
    for seed in range(12):
        made = steps(places(), np.random.default_rng(seed))
        if augment == "three_augment":  # which changes colours only
            made["image"] = tr.Chain(recipes.AUGMENTATIONS["random_resized_crop"](pp))(
                places(), np.random.default_rng(seed)
            )["image"]
        kept = label_maps.kept(made)
        told = np.asarray(labels(kept[label_maps.MAP][None], kept[label_maps.WINDOW][None]))[0]
        image = np.asarray(made["image"], float)
        found, cells = seen(image), image[..., 2].reshape(4, 16, 4, 16)
        inside = cells.min((1, 3)) > 248  # all of the cell
        inside &= (found > 0.06).all(-1) & (found < 0.94).all(-1)  # RoIAlign clamps at the border
        assert np.abs(told - found)[inside].max(initial=0) < 0.04
        mirrored += bool(inside.any() and found[2, 0, 0] > found[2, -1, 0])
    assert bool(mirrored) is (augment != "none")


@pytest.mark.parametrize("name", MOVES)
def test_what_comes_from_outside_has_no_label(name):
    record = places()
    operation = SPACES["timm"].draw((300, 200), name, 1.0, np.random.default_rng(0))
    assert operation.moves
    made = label_maps.moved(record, (300, 200), operation.on_numbers)
    image = np.asarray(operation(Image.fromarray(record["image"])))
    at = image[5::10, 7::15]  # near the centres of the 20 × 20 places
    outside = (at == SPACES["timm"].fill).all(-1)
    scores, classes = made[label_maps.MAP]
    assert 10 < outside.sum() < 250
    assert (scores[:, outside] == 0).mean() > 0.9  # the centres lie between two pixels
    assert (scores[:, ~outside] > 0).mean() > 0.97
    assert (classes == np.arange(2)[:, None, None]).all()


def test_records_without_a_map_are_left_alone():
    record = {"image": np.zeros((4, 6, 3), np.uint8), "label": 1}
    for changed in (
        label_maps.cropped(record, 1, 1, 2, 2),
        label_maps.mirrored(record),
        label_maps.moved(record, (6, 4), lambda image: image),
    ):
        assert changed is record
    assert label_maps.kept(record) == {}


def written(folder, config):
    """A map [3, 2, 3, 4] for each training image: its scores are 0 to 23, its classes 0 and 1."""
    for path in (folder / "train").glob("*/*.*"):
        if path.suffix != ".txt":
            target = folder / "maps" / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            map_ = np.arange(72, dtype=np.float16).reshape(3, 2, 3, 4)
            map_[1] = np.arange(2)[:, None, None]
            np.save(target / f"{path.stem}.npy", map_)
    config.token_labels.maps = str(folder / "maps")
    return config


@pytest.fixture
def with_maps(tmp_path, config, photos):
    for split in ("train", "test"):
        for name, photo in zip(("china", "flower"), photos, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(photo[: 40 + i, :60]).save(tmp_path / split / name / f"{i}.a.png")
    config.dataset = str(tmp_path)
    return written(tmp_path, config)


def test_batches_have_maps_and_windows_in_training_only(with_maps):
    train, test = input_pipeline.get_datasets(with_maps, compact=True)
    batch = next(iter(train))
    assert batch[label_maps.MAP].shape == (6, 2, 2, 3, 4)
    assert {x.dtype.name for name, x in batch.items() if name.startswith("label_")} == {"float32"}
    windows = batch[label_maps.WINDOW]
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, :2] + windows[:, 2:] <= 1 + 1e-6).all()
    assert len(np.unique(windows)) > 12
    # Some are mirrored, and the others are as they are in the files.
    first = batch[label_maps.MAP][:, 0, 0, 0]
    assert {tuple(row) for row in first} == {(0, 1, 2, 3), (3, 2, 1, 0)}
    assert next(iter(test)).keys() == {"image", "label", "mask"}


def test_pytorchs_files(tmp_path):
    torch = pytest.importorskip("torch")
    map_ = np.arange(24, dtype=np.float16).reshape(2, 2, 2, 3) % 5
    torch.save(torch.from_numpy(map_), tmp_path / "a.pt")
    np.testing.assert_array_equal(label_maps.read_map(str(tmp_path / "a.pt"), 5), map_)
    torch.save({"a": torch.zeros(2)}, tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"nothing")
    for name in "bc":
        with pytest.raises(UserError, match=f"{name}.pt"):
            label_maps.read_map(str(tmp_path / f"{name}.pt"), 5)


def array(**changes):
    map_ = np.zeros((2, 2, 3, 4), np.float32)
    for plane, value in changes.items():
        map_["ab".index(plane), 0, 0, 0] = value
    return map_


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            np.zeros((2, 3, 4)),
            r"no label map: expected numbers \[2, M, height, width\], .* float64",
        ),
        (np.zeros((4, 2, 3, 4)), r"got float64 \[4, 2, 3, 4\]"),
        (np.zeros((2, 0, 3, 4)), "no label map"),
        (np.full((2, 2, 3, 4), "a"), "no label map"),
        (array(a=np.nan), "NaN or infinite"),
        (array(b=2), "names classes from 0 to 2; the images have the classes 0 to 1"),
        (array(b=-1), "names classes from -1 to 0"),
        (array(b=0.5), "names classes"),
        (np.zeros((2, 2, 5, 5)), r"is \[2, 2, 5, 5\], that of the first image is \[2, 2, 3, 4\]"),
        (np.array([{}], dtype=object), "cannot read the label map"),
        (None, "there is no label map .*1.a.pt or .*1.a.npy for "),
    ],
)
def test_a_wrong_map_is_named(with_maps, content, message):
    path = f"{with_maps.token_labels.maps}/china/1.a.npy"
    if content is None:
        os.remove(path)
    else:
        np.save(path, content)
    train, _ = input_pipeline.get_datasets(with_maps)
    with pytest.raises(UserError, match=message):
        [train._source[i] for i in range(6)]


def test_refused_before_anything_is_read(with_maps):
    with_maps.pp.augment = "deit"
    with pytest.raises(UserError, match=r"'deit' moves pixels .* choose from lvvit, random_"):
        input_pipeline.get_datasets(with_maps)
    with_maps.pp.augment, with_maps.token_labels.maps = "inception", "/nowhere"
    with pytest.raises(UserError, match="no folder of label maps '/nowhere'"):
        input_pipeline.get_datasets(with_maps)


class Named:
    """A source of one record."""

    num_classes, description, int2str = 2, "one image", str

    def __init__(self, name, label=1):
        self.record = {"image": b"", "label": label, "name": name}

    def __getitem__(self, index):
        return self.record


def test_maps_in_a_store():
    files, where = fsspec.filesystem("memory"), "memory://label_maps/maps"
    with files.open(f"{where}/1/n.npy", "wb") as file:
        np.save(file, array())
    try:
        found = label_maps.LabelMaps(Named("/images/1/n.JPEG"), where)[0]
        assert found[label_maps.MAP].shape == (2, 2, 3, 4)
    finally:
        files.rm("/label_maps", recursive=True)


@pytest.mark.parametrize(
    "name", ["x[train] example 7 (n1_0.JPEG)", "/in1k/train.tar:n1_0.JPEG", "/a(b)/c/n1_0.x.JPEG"]
)
def test_names_of_files(tmp_path, name):
    (tmp_path / "1").mkdir()
    for file in ("n1_0.npy", "n1_0.x.npy"):
        np.save(tmp_path / "1" / file, array())
    found = label_maps.LabelMaps(Named(name), str(tmp_path))[0]
    assert found[label_maps.MAP].shape == (2, 2, 3, 4)
    with pytest.raises(UserError, match="one class each"):
        label_maps.LabelMaps(Named(name, label=[0, 1]), str(tmp_path))

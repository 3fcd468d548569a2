"""Batches: what is in them, in which order, whatever reads them."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from number_batches import Number, Numbers, train

from vit_jax import input_pipeline
from vit_jax.errors import UserError
from vit_jax.input_pipeline import loader, recipes
from vit_jax.input_pipeline.decode import DamagedImage
from vit_jax.input_pipeline.loader import Reading, TestDataset, TrainDataset


def numbers(batches, count: int) -> list[int]:
    taken = itertools.islice(batches, count)
    return np.concatenate([batch["image"][:, 0] for batch in taken]).astype(int).tolist()


def assert_same(left, right) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (7, 7), (3, 8), (1, 2)])
def test_epochs_hold_every_example_once(count, batch_size):
    stream = numbers(train(count, batch_size).iterate(), 3 * count)
    epochs = [stream[i : i + count] for i in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count >= 7:
        assert len({tuple(epoch) for epoch in epochs} | {tuple(range(count))}) == 4


def test_batch_is_a_function_of_seed_and_step():
    whole = list(itertools.islice(train(10, 4).iterate(), 30))
    for step in (0, 1, 2, 3, 7, 29):
        assert_same(next(train(10, 4).iterate(step)), whole[step])
    assert_same(next(iter(train(10, 4))), whole[0])
    assert_same(next(train(10, 4).as_numpy_iterator()), whole[0])
    far = next(train(10, 4).iterate(10**9))
    assert len(far["image"]) == 4
    other = next(train(10, 4, seed=1).iterate())
    assert not np.array_equal(other["image"], whole[0]["image"])


def test_every_epoch_draws_anew():
    draws = [b["image"][:, 1] for b in itertools.islice(train(6, 6).iterate(), 50)]
    assert len(np.unique(draws)) == 300


def test_hosts_share_a_batch():
    whole = train(10, 6).iterate()
    hosts = [train(10, 6, process_index=i, process_count=3).iterate() for i in range(3)]
    for _ in range(5):
        parts = [next(host) for host in hosts]
        assert [len(part["image"]) for part in parts] == [2, 2, 2]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_same(joined, next(whole))
    with pytest.raises(UserError, match="batch of 6 does not divide among 4 processes"):
        train(10, 6, process_count=4)


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetch_changes_nothing(prefetch):
    plain, other = train(10, 4).iterate(2), train(10, 4, prefetch=prefetch).iterate(2)
    for _ in range(6):
        assert_same(next(plain), next(other))


def test_worker_processes_change_nothing(config):
    plain, plain_test = input_pipeline.get_datasets(config)
    config.data.num_workers = 2
    workers, workers_test = input_pipeline.get_datasets(config)
    pairs = zip(plain.iterate(3), workers.iterate(3), strict=False)
    for left, right in itertools.islice(pairs, 5):
        assert_same(left, right)
    left, right = list(plain_test), list(workers_test)
    assert len(left) == len(right) == 3
    for one, other in zip(left, right, strict=True):
        assert_same(one, other)


# --- testing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "batch_size", "hosts"),
    [(10, 4, 1), (8, 4, 1), (3, 8, 1), (7, 1, 1), (1, 1, 1), (10, 4, 2), (3, 8, 2), (1, 9, 3)],
)
def test_every_example_is_counted_once(count, batch_size, hosts):
    seen = []
    for host in range(hosts):
        reading = Reading(process_index=host, process_count=hosts)
        dataset = TestDataset(Numbers(count), Number(), batch_size=batch_size, reading=reading)
        batches = list(dataset)
        assert len(batches) == len(dataset) == -(-count // batch_size)
        assert dataset.num_examples == count
        for batch in batches:
            assert batch["mask"].shape == (batch_size // hosts,)
            assert batch["mask"].dtype == np.float32
            real = batch["mask"] == 1
            seen.extend(batch["image"][real, 0].astype(int))
            assert not batch["mask"][~real].any()
            assert not batch["image"][~real].any()
            assert not batch["label"][~real].any()
        assert [len(list(dataset)) for _ in range(2)] == [len(dataset)] * 2
    assert sorted(seen) == list(range(count))


# --- from a config -------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", recipes.AUGMENTATIONS)
@pytest.mark.parametrize("resize", [None, 20])
def test_batches(config, augment, resize):
    config.pp.augment, config.pp.resize = augment, resize
    train_set, test_set = input_pipeline.get_datasets(config)
    for batch, rows in ((next(iter(train_set)), 6), (next(iter(test_set)), 4)):
        assert batch["image"].shape == (rows, 16, 16, 3)
        assert batch["image"].dtype == batch["label"].dtype == np.float32
        assert -1 <= batch["image"].min() < batch["image"].max() <= 1
        np.testing.assert_array_equal(batch["label"].sum(axis=1), np.ones(rows))


def test_everything_at_once(config):
    """The options that go with any augmentation, and a policy of one's own."""
    pp = config.pp
    pp.augment, pp.autoaug_policy = "autoaug", ((("Invert", 1.0, 0),),)
    pp.color_jitter, pp.erasing, pp.resize_method, pp.area_min = 0.3, 1.0, "bicubic", 0.5
    pp.mean, pp.std = (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)
    pp.resize, pp.resize_shape = 20, "shortest"
    config.data.repeats = 3
    train_set, test_set = input_pipeline.get_datasets(config)
    batch = next(iter(train_set))
    assert batch["image"].shape == (6, 16, 16, 3)
    assert batch["image"].max() > 1
    np.testing.assert_array_equal(batch["label"][0], batch["label"][2])
    assert next(iter(test_set))["image"].shape == (4, 16, 16, 3)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", ["squash", "shortest"])
@pytest.mark.parametrize("resize", [None, 16, 20])
def test_evaluation_is_what_the_run_says_of_it(config, resize, shape, method):
    """`recipes.preprocess`, which goes with the model, prepares the same images."""
    from vit_jax.input_pipeline import transforms as tr

    pp = config.pp
    pp.resize, pp.resize_shape, pp.resize_method, pp.mean = resize, shape, method, (0.4, 0.5, 0.6)
    _, test_set = input_pipeline.get_datasets(config)
    image = tr.Decode()(loader.FolderSource(f"{config.dataset}/test")[0])["image"]
    expected = tr.preprocess_image(image, recipes.preprocess(pp))
    np.testing.assert_allclose(next(iter(test_set))["image"][0], expected, atol=1e-6)


def test_evaluation_honours_resize(config):
    """Without `resize` the image is squashed to `crop`; with it, resized and then cropped."""
    from vit_jax.input_pipeline import transforms as tr

    image = tr.Decode()(loader.FolderSource(f"{config.dataset}/test")[0])["image"]
    for resize, pixels in (
        (None, tr.resize_bilinear(image, 16, 16)),
        (20, tr.resize_bilinear(image, 20, 20)[2:18, 2:18]),
    ):
        config.pp.resize = resize
        _, test_set = input_pipeline.get_datasets(config)
        np.testing.assert_allclose(next(iter(test_set))["image"][0], pixels / 127.5 - 1, atol=1e-6)


def test_augmentation_differs_from_example_to_example(config):
    config.batch = 32  # 16 images, so that each is there twice.
    for augment, varies in (("inception", True), ("crop", True), ("digits", True), ("none", False)):
        config.pp.augment, config.pp.resize = augment, 20
        train_set, _ = input_pipeline.get_datasets(config)
        images = next(iter(train_set))["image"]
        assert (len(np.unique(images.reshape(32, -1), axis=0)) > 16) is varies, augment


def test_tfds_dataset(config, digits_dir):
    config.dataset, config.tfds_data_dir = "digits", digits_dir
    config.pp.train, config.pp.augment, config.batch_eval = "train[:98%]", "digits", 100
    train_set, test_set = input_pipeline.get_datasets(config)
    assert (train_set.num_examples, test_set.num_examples) == (1408, 360)
    assert train_set.num_classes == 10
    assert sum(batch["mask"].sum() for batch in test_set) == 360
    again, _ = input_pipeline.get_datasets(config)
    assert_same(next(train_set.iterate(3)), next(again.iterate(3)))


def test_original_configs_work(folder):
    """A config as the original's tests write it: half of `pp` is missing; 16 images fill 64."""
    from ml_collections import ConfigDict

    config = ConfigDict({"dataset": str(folder), "batch": 64, "batch_eval": 8, "pp": {"crop": 32}})
    train_set, test_set = input_pipeline.get_datasets(config)
    assert next(iter(train_set))["image"].shape == (64, 32, 32, 3)
    assert sum(batch["mask"].sum() for batch in test_set) == 10
    for mode in ("train", "test"):
        directory = f"{folder}/{mode}"
        one = input_pipeline.get_data_from_directory(config=config, directory=directory, mode=mode)
        assert one.num_examples == {"train": 16, "test": 10}[mode]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pp.augment", "inceptoin", "unknown config.pp.augment.*Did you mean 'inception'"),
        ("pp.crop", 0, "config.pp.crop must be an integer of at least 1, got 0"),
        ("pp.resize", 8, r"config.pp.resize \(8\) is smaller than pp.crop \(16\)"),
        ("batch", 0, "config.batch must be an integer of at least 1"),
        ("batch_eval", -4, "config.batch_eval must be an integer of at least 1"),
        ("data.num_workers", -1, "config.data.num_workers must be an integer of at least 0"),
        ("prefetch", -1, "config.prefetch must be an integer of at least 0"),
        ("seed", -1, r"config.seed must be an integer in \[0, 4294967295\], got -1"),
        ("data.on_error", "ignore", "on_error must be 'raise' or 'skip', got 'ignore'"),
        ("data.repeats", 0, "config.data.repeats must be an integer of at least 1"),
        ("pp.resize_method", "bicubc", "Did you mean 'bicubic'"),
        ("pp.resize_shape", "longest", "Choose from squash, shortest"),
        ("pp.randaug.space", "keras", "Choose from torchvision, timm, big_vision"),
        ("pp.erasing", 1.5, r"config.pp.erasing must be in \[0, 1\]"),
        ("pp.color_jitter", -1.0, "config.pp.color_jitter"),
        ("pp.area_min", 0.0, r"config.pp.area_min must be in \(0, 1\]"),
        ("pp.std", (1.0, 0.0, 1.0), "config.pp.std must be a finite number above 0"),
        ("pp.autoaug_policy", ((("Spin", 1.0, 2),),), r"unknown operations \['Spin'\]"),
        ("pp.autoaug_policy", ("Invert",), "lines of"),
        (
            "pp.autoaug_policy",
            ((("Invert", 1.5, 2),),),
            r"a probability .* \[0, 1\], got 1.5",
        ),
        ("pp.autoaug_policy", ((("Invert", 0.5, 10),),), r"a level of .* in \[0, 9\], got 10"),
        ("dataset", "cifar1", "unknown dataset 'cifar1'"),
    ],
)
def test_bad_setting(config, field, value, message):
    config = config.copy_and_resolve_references()
    place, _, name = field.rpartition(".")
    with config.ignore_type():
        (config[place] if place else config)[name] = value
    with pytest.raises(UserError, match=message):
        input_pipeline.get_datasets(config)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_image_is_named(config, tmp_path, num_workers):
    shutil.copytree(config.dataset, tmp_path, dirs_exist_ok=True)
    bad = tmp_path / "train" / "china" / "0.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    config.dataset, config.data.num_workers = str(tmp_path), num_workers
    train_set, _ = input_pipeline.get_datasets(config)
    with pytest.raises(UserError, match=f"cannot decode {bad}"):
        list(itertools.islice(train_set.iterate(), 3))


# --- damaged images ------------------------------------------------------------------------------

DAMAGED = {"train": ["china/0.jpg", "flower/7.jpeg"], "test": ["flower/1.JPG"]}


@pytest.fixture
def damaged(config, tmp_path):
    """`config` on a copy of its folder in which a few images are cut short."""
    shutil.copytree(config.dataset, tmp_path, dirs_exist_ok=True)
    for split, names in DAMAGED.items():
        for name in names:
            path = tmp_path / split / name
            path.write_bytes(path.read_bytes()[:200])
    config.dataset, config.data.on_error = str(tmp_path), "skip"
    config.batch, config.batch_eval = 8, 4
    return config


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_images_are_skipped_by_rule(damaged, num_workers):
    damaged.data.num_workers = num_workers
    damaged.pp.augment = "none"  # So that an image shows which record it is of.
    train_set, test_set = input_pipeline.get_datasets(damaged)
    assert train_set.errors == []
    with train_set.iterate() as stream:
        epoch = [next(stream), next(stream)]  # 16 images.
    assert epoch[0].keys() == {"image", "label"}
    images = np.concatenate([batch["image"] for batch in epoch])
    kinds, counts = np.unique(images.reshape(16, -1), axis=0, return_counts=True)
    # After the last comes the first, which is damaged too: the second stands for both.
    assert (len(kinds), sorted(counts)) == (14, [1] * 13 + [3])
    paths = [f"{damaged.dataset}/train/{name}" for name in DAMAGED["train"]]
    assert train_set.errors == paths

    batches = list(test_set)
    assert sum(batch["mask"].sum() for batch in batches) == test_set.num_examples - 1 == 9
    assert not batches[1]["image"][2].any()
    assert test_set.errors == [f"{damaged.dataset}/test/{name}" for name in DAMAGED["test"]]


def test_skipping_is_the_same_on_any_number_of_hosts(damaged):
    whole, _ = input_pipeline.get_datasets(damaged)
    parts = [
        input_pipeline.get_datasets(damaged, process_index=i, process_count=2)[0] for i in (0, 1)
    ]
    streams = [part.iterate(1) for part in parts]
    for expected in itertools.islice(whole.iterate(1), 4):
        batches = [next(stream) for stream in streams]
        joined = {name: np.concatenate([b[name] for b in batches]) for name in expected}
        assert_same(joined, expected)
    assert sorted({name for part in parts for name in part.errors}) == sorted(whole.errors)


def test_skipping_changes_no_other_example(damaged):
    """With and without a damaged image, all examples of other records are the same."""
    plain = damaged.copy_and_resolve_references()
    whole, _ = input_pipeline.get_datasets(damaged)
    first = next(whole.iterate())["image"]
    for name in DAMAGED["train"]:
        path = f"{plain.dataset}/train/{name}"
        shutil.copy(f"{plain.dataset}/train/flower/6.JPG", path)
    repaired, _ = input_pipeline.get_datasets(plain)
    differs = (next(repaired.iterate())["image"] != first).any(axis=(1, 2, 3))
    assert differs.sum() <= 2


def test_the_first_image_may_be_damaged(damaged):
    """The filling's shape comes from another."""
    shutil.copy(f"{damaged.dataset}/train/china/0.jpg", f"{damaged.dataset}/test/china/0.jpg")
    _, test_set = input_pipeline.get_datasets(damaged)
    assert sum(batch["mask"].sum() for batch in test_set) == 8


class AllDamaged:
    def __call__(self, record, rng=None):
        raise DamagedImage(f"cannot decode {record['name']}")


def test_nothing_but_damaged_images():
    datasets = (
        TrainDataset(Numbers(9), AllDamaged(), batch_size=2, seed=0, on_error="skip"),
        TestDataset(Numbers(9), AllDamaged(), batch_size=2, on_error="skip"),
    )
    for dataset in datasets:
        with pytest.raises(UserError, match="9 images in a row cannot be decoded"):
            list(dataset)


def test_an_unreadable_file_is_not_skipped(damaged):
    """It may be there at the next try: skipping it would not be the same every time."""
    _, test_set = input_pipeline.get_datasets(damaged)
    (Path(damaged.dataset) / "test" / "china" / "0.jpg").unlink()
    with pytest.raises(UserError, match="cannot read the image"):
        list(test_set)


# --- repeated augmentation -----------------------------------------------------------------------


def repeated(repeats: int, batch_size: int, steps: range, hosts: int = 1) -> np.ndarray:
    """(number, draw) of all examples [steps, batch_size, 2], read by `hosts`."""
    parts = []
    for host in range(hosts):
        reading = Reading(process_index=host, process_count=hosts)
        dataset = TrainDataset(
            Numbers(100), Number(), batch_size=batch_size, seed=0, reading=reading, repeats=repeats
        )
        batches = itertools.islice(dataset.iterate(steps.start), len(steps))
        parts.append(np.stack([batch["image"] for batch in batches]))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize(
    ("repeats", "batch_size", "rounds"),
    [(3, 12, [4, 4, 4]), (2, 12, [6, 6]), (3, 20, [7, 7, 6]), (5, 4, [1, 1, 1, 1])],
    ids=str,
)
def test_repeats(repeats, batch_size, rounds, start):
    """Copy r of image i stands at r N / R + i; what does not divide ends the last round early."""
    batches = repeated(repeats, batch_size, range(start, start + 30))
    images = rounds[0]
    order = numbers(train(100, images).iterate(start), 30)
    for batch, fresh in zip(batches, np.reshape(order, (30, images)), strict=True):
        expected = np.concatenate([fresh[:count] for count in rounds])
        np.testing.assert_array_equal(batch[:, 0], expected)
    draws = batches[..., 1].ravel()
    assert len(np.unique(draws)) == len(draws)  # Each copy draws anew.


@pytest.mark.parametrize(("repeats", "batch_size"), [(3, 12), (2, 12), (3, 20)], ids=str)
def test_repeats_are_of_the_global_batch(repeats, batch_size):
    one = repeated(repeats, batch_size, range(2, 12))
    np.testing.assert_array_equal(repeated(repeats, batch_size, range(2, 12), hosts=2), one)
    np.testing.assert_array_equal(repeated(repeats, batch_size, range(7, 9)), one[5:7])
    # What an example is mixed with (vit_jax/train/mixing.py) is never the same image.
    number = one[..., 0]
    assert (number != np.roll(number, 1, axis=1)).all()
    assert (np.sort(number, axis=1)[:, 1:] == np.sort(number, axis=1)[:, :-1]).any()


# --- closing -------------------------------------------------------------------------------------

CLOSING = """
import itertools, multiprocessing, sys
import numpy as np
from number_batches import Numbers, Big
from vit_jax.input_pipeline.loader import Reading, TrainDataset

if __name__ == "__main__":
    dataset = TrainDataset(Numbers(50), Big(), batch_size=8, seed=0, reading=Reading(2, 4))
    stream = dataset.iterate()
    kept = list(itertools.islice(stream, 5))
    if sys.argv[1] == "close":
        stream.close()
        stream.close()
        assert next(stream, None) is None
        assert not multiprocessing.active_children()
"""


@pytest.mark.parametrize("how", ["close", "forget"])
def test_workers_end_in_silence(tmp_path, how):
    """No process, no shared memory, and no warning of either is left."""
    script = tmp_path / "closing.py"
    script.write_text(CLOSING)
    done = subprocess.run(
        [sys.executable, str(script), how],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "helpers")},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stream_of_threads_closes():
    with train(10, 4).iterate() as stream:
        next(stream)
    assert list(stream) == []

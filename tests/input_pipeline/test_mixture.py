"""Mixtures: exact proportions, an order that depends on the step alone, and joined classes."""

import itertools

import numpy as np
import pytest
from image_helpers import encode
from number_batches import Number, Numbers

from vit_jax import input_pipeline
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.input_pipeline import order
from vit_jax.input_pipeline.classes import names_of
from vit_jax.input_pipeline.loader import Reading, TrainDataset
from vit_jax.input_pipeline.mixture import open_mixture
from vit_jax.overrides import overridden

PARTS = [order.Part(50, 0.7), order.Part(7, 0.2), order.Part(20, 0.1)]
STARTS = (0, 50, 57)


@pytest.mark.parametrize(
    ("weights", "off"),
    [((1,), 0), ((1, 1), 1), ((7, 3), 1), ((999, 1), 1), ((5, 4, 3), 2), (range(1, 10), 3)],
)
def test_places_are_dealt_evenly(weights, off):
    bounds = [0, *itertools.accumulate(weights)]
    got = np.zeros(len(weights), int)
    for place in range(2000):
        number, before = order.dealt(place, bounds)
        assert before == got[number]
        got[number] += 1
        assert np.abs(got - (place + 1) * np.array(weights) / bounds[-1]).max() < max(off, 1e-9)
    assert order.dealt(10**15, bounds)[1] <= 10**15


def test_each_dataset_goes_through_its_epochs_and_every_batch_has_its_shares():
    records = order.shuffled(PARTS, window=20, seed=3)
    batches = np.array([records[i] for i in range(500)]).reshape(25, 20)
    numbers = np.searchsorted(STARTS, batches, side="right") - 1
    assert (np.stack([(numbers == i).sum(1) for i in range(3)], 1) == (14, 4, 2)).all()
    # At the end of a batch no record of a dataset has come twice more often than another one.
    for end in range(1, 26):
        counts = np.bincount(batches[:end].ravel(), minlength=77)
        for start, part in zip(STARTS, PARTS, strict=True):
            assert np.ptp(counts[start : start + part.count]) <= 1
    orders = [tuple(batches[numbers == 0][i * 50 : i * 50 + 40]) for i in range(7)]
    assert len(set(orders)) == 7  # every epoch is another permutation
    # The places of a dataset in the batch change: Mixup's partner is not always of the same one.
    assert len({tuple(row) for row in numbers}) > 20


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_order_is_the_same_on_any_number_of_hosts(hosts):
    records = order.shuffled(PARTS, window=16, seed=3)
    whole = [records[i] for i in range(96)]
    rows = 16 // hosts
    parts = [order.LocalRows(records, 16, host, rows) for host in range(hosts)]
    joined = [part[batch * rows + i] for batch in range(6) for part in parts for i in range(rows)]
    assert joined == whole
    assert all(0 <= records[10**15 + i] < 77 for i in range(16))


def test_resuming_on_other_hosts_goes_on_with_the_same_examples():
    def taken(start: int, stop: int, **reading) -> np.ndarray:
        """The numbers of the records and the random draws, [batch, row, 2]."""
        reading = Reading(**reading)
        made = TrainDataset(
            Numbers(77), Number(), batch_size=8, seed=3, parts=PARTS, reading=reading
        )
        with made.iterate(start) as stream:
            return np.stack([batch["image"] for batch in itertools.islice(stream, stop - start)])

    whole = taken(0, 4)
    hosts = [taken(2, 4, process_index=i, process_count=2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(hosts, axis=1), whole[2:])


def test_one_dataset_is_read_as_without_a_mixture():
    alone, plain = (order.shuffled([part], 8, 3) for part in (PARTS[0], order.Part(50)))
    assert [alone[i] for i in range(120)] == [plain[i] for i in range(120)]


# --- classes -------------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path):
    """Folders of images of one colour: `main` has cat and dog, others have other names."""

    def folder(name: str, *classes: str, count: int = 3) -> str:
        for split, label in itertools.product(("train", "test"), classes):
            place = tmp_path / name / split / label
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i}.png").write_bytes(encode(np.zeros((4, 4, 3), np.uint8)))
        return str(tmp_path / name)

    folder("main", "cat", "dog")
    folder("sorted", "dog", "cat", count=5)
    folder("more", "ant", "cat", "dog")
    folder("kitty", "kitty", "dog")
    folder("cats", "cat")
    return tmp_path


def mixture(datasets, join: str = "same", **listed):
    config = common.get_config().unlock()
    config.dataset, config.mixture_classes = str(datasets / "main"), join
    config.batch, config.batch_eval, config.pp.crop, config.pp.augment = 8, 4, 4, "none"
    config.mixture = {
        name: {"dataset": str(datasets / name.rstrip("_")), **fields}
        for name, fields in listed.items()
    }
    return common.with_defaults(config)


KITTY = {"classes": (("kitty", "cat"),)}


@pytest.mark.parametrize(
    ("join", "listed", "names", "count"),
    [
        ("same", {"main": {}, "sorted": {"weight": 3}}, ["cat", "dog"], 16),
        ("same", {"kitty": KITTY, "cats": {}}, ["cat", "dog"], 9),
        ("union", {"more": {}}, ["cat", "dog", "ant"], 9),
        ("union", {"cats": {}, "kitty": {}, "more": {}}, ["cat", "dog", "kitty", "ant"], 18),
    ],
)
def test_classes_are_joined_by_name(datasets, join, listed, names, count):
    config = mixture(datasets, join, **listed)
    source = open_mixture(config, ["cat", "dog"])
    assert names_of(source) == names
    assert len(source) == count
    renamed = dict(KITTY["classes"]) if listed.get("kitty") else {}
    for i in range(len(source)):
        folder = source[i]["name"].split("/")[-2]
        assert names[source[i]["label"]] == renamed.get(folder, folder)
    train, test = input_pipeline.get_datasets(config)
    assert train.class_names == test.class_names == names
    assert next(iter(test))["label"].shape == (4, len(names))
    for name in listed:
        assert f"% of {name} ({datasets / name}/train" in train.summary


@pytest.mark.parametrize(
    ("join", "listed", "message"),
    [
        (
            "same",
            {"kitty": {}},
            r"kitty\).*not know by name.*kitty.*pairs would be dog = cat, kitty",
        ),
        ("same", {"more": {}}, r"1 of 3 classes that .*main does not know.*ant.*='union' adds"),
        (
            "same",
            {"cats": {}},
            "main has 1 of 2 classes that no dataset of config.mixture has: dog",
        ),
        ("same", {"main": {"classes": (("cta", "dog"),)}}, "no class 'cta'.*Did you mean 'cat'"),
        ("same", {"main": {"classes": (("cat", "x"), ("cat", "dog"))}}, "names a class twice"),
        ("same", {"main": {"classes": "cat=dog"}}, "classes must be pairs"),
        ("same", {"main": {"weight": 0}}, "config.mixture.main.weight must be .*above 0, got 0"),
        ("same", {"main": {"wieght": 2}}, "main has no field 'wieght'. Did you mean 'weight'"),
        ("same", {"main": {"dataset": None}}, "config.mixture.main.dataset is not set"),
        ("same", {"main": {"split": 3}}, "config.mixture.main.split must be a text, got 3"),
        ("both", {"main": {}}, "mixture_classes must be 'same' or 'union', got 'both'"),
        ("same", {"nowhere": {"dataset": "no.csv"}}, "cannot read no.csv"),
    ],
)
def test_what_does_not_fit_is_refused(datasets, join, listed, message):
    with pytest.raises(UserError, match=message):
        input_pipeline.get_datasets(mixture(datasets, join, **listed))


def test_the_mixture_on_the_command_line():
    given = 'mixture={"a": {"dataset": "x", "weight": 0.5}}'
    config, _ = overridden(common.get_config(), [given, "mixture_classes=union"])
    config = common.with_defaults(config)
    assert config.mixture.a.weight == 0.5
    config, _ = overridden(config, ["mixture.a.weight=2"])
    assert common.with_defaults(config).mixture.to_dict() == {"a": {"dataset": "x", "weight": 2.0}}

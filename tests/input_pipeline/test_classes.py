"""The order of classes in every source, and how a dataset's classes find a model's outputs."""

import numpy as np
import pytest
from image_helpers import encode

from vit_jax.class_names import class_names, wordnet_ids
from vit_jax.errors import UserError
from vit_jax.input_pipeline import classes, sources
from vit_jax.input_pipeline.classes import names_of


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "2", "1"], ["1", "2", "10"]),
        (["10", "-2", "1"], ["-2", "1", "10"]),
        (["b", "10", "2"], ["10", "2", "b"]),
        (["b", "B", "a", "b"], ["B", "a", "b"]),
        (["01", "1", "2"], ["01", "1", "2"]),
    ],
)
def test_one_order_in_every_source(tmp_path, names, expected):
    assert classes.ordered(names) == expected
    for name in names:
        (tmp_path / "folder" / name).mkdir(parents=True, exist_ok=True)
        image = encode(np.zeros((5, 5, 3), np.uint8))
        (tmp_path / "folder" / name / "1.png").write_bytes(image)
    rows = "".join(f"folder/{name}/1.png,{name}\n" for name in names)
    (tmp_path / "table.csv").write_text(rows)
    (tmp_path / "lines.jsonl").write_text(
        "\n".join(f'{{"path": "folder/{name}/1.png", "label": "{name}"}}' for name in names)
    )
    images = np.full((len(names), 5, 5), 200, np.uint8)
    np.savez(tmp_path / "arrays.npz", images=images, labels=np.array(names))
    for dataset in ("folder", "table.csv", "lines.jsonl", "arrays.npz"):
        assert names_of(sources.open_source(str(tmp_path / dataset))) == expected, dataset


def match(names, outputs, **options):
    return classes.match(names, outputs, dataset="data", model="run", **options)


IDS, NAMES = wordnet_ids(1000), class_names(1000)


@pytest.mark.parametrize(
    ("names", "outputs", "order"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["b", "a"], ["a", "b"], [1, 0]),
        (["c", "a"], ["a", "b", "c"], [2, 0]),
        (["1", "2", "10"], ["1", "10", "2"], [0, 2, 1]),
        (["Übung"], ["x", "U\u0308bung"], [1]),  # macOS takes the letter apart.
        (["a", "a"], ["a", "a"], [0, 1]),
        (["a", "b"], 2, [0, 1]),
        (["8", "9"], 2, [0, 1]),
        ([IDS[999], IDS[7]], NAMES, [999, 7]),
        ([NAMES[999], NAMES[7]], IDS, [999, 7]),
        (IDS, NAMES, list(range(1000))),
        ([IDS[999], IDS[7]], ["a tench", *NAMES[1:]], [999, 7]),
    ],
)
def test_names_are_matched_whatever_their_order(names, outputs, order):
    assert match(names, outputs) == order


@pytest.mark.parametrize(
    ("names", "outputs", "message"),
    [
        (["rot", "blau"], ["blue", "red"], r"rot = blue, blau = red\. .*--by-position"),
        (
            ["red", "blau"],
            ["blue", "red"],
            "data has 1 of 2 classes that run does not know by name, .*: blau",
        ),
        (["red", "pink"], ["blue", "red", "green"], "The model's 3 classes are blue, red, green"),
        (["a"], ["a", "b", "a"], "data has 1 of 1 classes that run .*or knows twice: a"),
        (["a", "b"], 3, "run tells 3 classes apart, the dataset data has 2"),
        (["1", "2", "10"], 3, "have 1, 10, 2. .*add --by-position"),
        ([f"x{i}" for i in range(1000)], NAMES, "and 990 more"),
    ],
)
def test_other_names_are_refused(names, outputs, message):
    with pytest.raises(UserError, match=message) as error:
        match(names, outputs)
    assert len(str(error.value)) < 1500


def test_by_position():
    assert match(["rot", "blau"], ["blue", "red"], by_position=True) == [0, 1]
    assert match(["1", "2", "10"], 3, by_position=True) == [0, 1, 2]
    assert match(["0", "2"], ["blue", "red", "green"], by_position=True) == [0, 2]
    with pytest.raises(UserError, match="numbers of outputs, from 0"):
        match(["1", "3"], ["blue", "red", "green"], by_position=True)
    with pytest.raises(UserError, match="only if there are as many"):
        match(["rot"], ["blue", "red"], by_position=True)


def test_relabelled(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.png").write_bytes(encode(np.zeros((1, 1, 3), np.uint8)))
    (tmp_path / "one.csv").write_text("b.png,b\na.png,a\n")
    (tmp_path / "two.csv").write_text("b.png,b;a\na.png,\n")
    for table, labels in (("one.csv", [0, 2]), ("two.csv", [[0, 2], []])):
        source = sources.open_source(str(tmp_path / table))
        outputs = ["b", "c", "a"]
        found = classes.Relabelled(source, match(names_of(source), outputs), outputs)
        assert [found[i]["label"] for i in range(2)] == labels
        assert (found.num_classes, names_of(found)) == (3, outputs)

"""Tables of paths and labels: how they are recognised, what they hold, what they refuse."""

import json
import pickle

import numpy as np
import pytest
from image_helpers import encode

from vit_jax import input_pipeline
from vit_jax.errors import UserError
from vit_jax.input_pipeline import sources
from vit_jax.input_pipeline.classes import names_of
from vit_jax.input_pipeline.table_source import TableSource
from vit_jax.input_pipeline.transforms import OneHot, decode_image


@pytest.fixture
def images(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(4):
        (tmp_path / "photos" / f"{i}.png").write_bytes(encode(np.full((2, 3, 3), i, np.uint8)))
    return tmp_path


def write(folder, name: str, *rows: str, encoding: str = "utf-8") -> str:
    path = folder / name
    path.write_text("".join(f"{row}\n" for row in rows), encoding=encoding)
    return str(path)


@pytest.mark.parametrize(
    ("rows", "names", "labels"),
    [
        (["photos/0.png,cat", "photos/1.png,ant"], ["ant", "cat"], [1, 0]),
        (["path,label", "photos/0.png,cat", "", "photos/1.png,cat"], ["cat"], [0, 0]),
        (["photos/0.png,10", "photos/1.png,9"], ["9", "10"], [1, 0]),
        (["photos/0.png,10", "photos/1.png,-9"], ["-9", "10"], [1, 0]),
        (["photos/0.png, big cat "], ["big cat"], [0]),
        (
            ["path,labels", "photos/0.png,b;a", "photos/1.png,", "photos/2.png,b; c"],
            ["a", "b", "c"],
            [[1, 0], [], [1, 2]],
        ),
        (['"photos/0.png","a, b"'], ["a, b"], [0]),
        (["path, label", 'photos/0.png, "a, b"'], ["a, b"], [0]),
        (["path,label\r", "photos/0.png,a\r", "\r", "photos/1.png,b\r"], ["a", "b"], [0, 1]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv(images, rows, names, labels, encoding):
    source = TableSource(write(images, "train.csv", *rows, encoding=encoding))
    assert names_of(source) == names
    assert [source[i]["label"] for i in range(len(source))] == labels
    assert source[0]["name"] == str(images / "photos" / "0.png")
    assert decode_image(source[0]["image"]).shape == (2, 3, 3)
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


ROWS = [("photos/0.png", "cat"), ("photos/1.png", "ant, red"), ("photos/2.png", "cat")]
HEADERS = [
    *(("path", name) for name in ("label", "Label", "class", "Category", "target")),
    *((name, "label") for name in ("image", "file", "filename", "file_name", "Image Path", "img")),
    None,
]


# Without names the path comes first.
TURNED = [
    (header, turned) for header in HEADERS for turned in (False, True) if header or not turned
]


@pytest.mark.parametrize(("header", "turned"), TURNED)
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_columns_are_recognised(images, header, mark, turned):
    def cells(row):
        quoted = [f'"{cell}"' if mark in cell else cell for cell in row]
        return mark.join(reversed(quoted) if turned else quoted)

    rows = [*([header] if header else []), *ROWS]
    suffix = ".tsv" if mark == "\t" else ".csv"
    source = TableSource(write(images, f"table{suffix}", *map(cells, rows)))
    assert names_of(source) == ["ant, red", "cat"]
    assert [source[i]["label"] for i in range(3)] == [1, 0, 1]
    assert [source[i]["name"][-5] for i in range(3)] == ["0", "1", "2"]


def test_other_columns_are_left_alone(images):
    rows = ["id,label,split,image", "7,cat,train,photos/3.png", "8,ant,train,photos/2.png"]
    source = TableSource(write(images, "t.csv", *rows))
    assert [(source[i]["name"][-5], source[i]["label"]) for i in (0, 1)] == [("3", 1), ("2", 0)]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".parquet"])
def test_json_lines_and_parquet(images, suffix):
    rows = [
        {"label": 10, "image": "photos/0.png"},
        {"label": 2, "image": "photos/1.png"},
        {"label": 10, "image": "photos/2.png"},
    ]
    several = [{"file_name": r["image"], "labels": ["b", "a"][:i]} for i, r in enumerate(rows)]
    for number, (content, names, labels) in enumerate(
        ((rows, ["2", "10"], [1, 0, 1]), (several, ["a", "b"], [[], [1], [1, 0]]))
    ):
        file = images / f"table{number}{suffix}"
        if suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), file)
        else:
            file.write_text("\n".join(map(json.dumps, content)))
        source = TableSource(file)
        assert names_of(source) == names
        assert [source[i]["label"] for i in range(3)] == labels


def test_several_labels_make_several_ones():
    one_hot = OneHot(4)
    for label, expected in ((2, [0, 0, 1, 0]), ([0, 3], [1, 0, 0, 1]), ([], [0, 0, 0, 0])):
        np.testing.assert_array_equal(one_hot({"image": None, "label": label})["label"], expected)


@pytest.mark.parametrize("test_name", ["test.csv", "val.csv", "validation.csv"])
def test_a_run_reads_the_test_table_beside(images, config, test_name):
    train = write(images, "train.csv", "photos/0.png,b;a", "photos/1.png,c")
    write(images, test_name, "photos/2.png,b", "photos/3.png,c;a")
    config.dataset, config.batch, config.batch_eval, config.pp.crop = train, 2, 2, 4
    train_set, test_set = input_pipeline.get_datasets(config)
    assert train_set.class_names == test_set.class_names == ["a", "b", "c"]
    labels = sorted(next(train_set.iterate())["label"].tolist())
    assert labels == [[0, 0, 1], [1, 1, 0]]
    assert next(iter(test_set))["label"].tolist() == [[0, 1, 0], [1, 0, 1]]
    info = input_pipeline.get_dataset_info(train, "test")
    assert (info["num_examples"], info["num_classes"], info["examples_glob"]) == (2, 3, None)


def test_without_a_split_the_named_file_is_read(images):
    write(images, "test.csv", "photos/0.png,a", "photos/1.png,b")
    hard = write(images, "hard.csv", "photos/2.png,b", "photos/3.png,b", "photos/0.png,c")
    source = sources.open_source(hard)
    assert (len(source), names_of(source), source.description) == (3, ["b", "c"], hard)
    assert source[0]["name"].endswith("2.png")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no labelled images"),
        (["path,label"], "no labelled images"),
        (["path,label", "photos/0.png,", "photos/1.png,"], "all cells of labels are empty"),
        (["photos/0.png,a", "photos/1.png,a,b"], "line 2: expected two columns .* got 3 cells"),
        (["path,label", "photos/0.png,a,b"], "line 2: expected 2 cells, path, label.* got 3 cells"),
        (["photos/0.png,a", ",a"], "line 2: expected"),
        (["photos/0.png,a", "photos/1.png,"], r"gives .*1\.png no label"),
        (["photos/0.png,a", "photo/1.png,a"], r"names 1 of 2 images that do not exist: .*1\.png"),
        (["Foto,Klasse", "photos/0.png,a"], r"line 1\. .*If the line names the columns: .*label"),
        (["file,image,label", "x,photos/0.png,a"], "several columns could be the path: file, im"),
        (["path,class,label", "photos/0.png,a,a"], "several columns could be the label: class, la"),
        (['photos/0.png,"a'], "is no CSV"),
        (["photos/0.png," + "long " * 10_000, "x"], "line 2: expected"),
        (["photos/" + "long" * 10_000 + ".png,a"], "do not exist"),
        (["photos\\0.png,a"], r"with / between folders, not"),
        ([f"photos/{i}x.png,a" for i in range(9999)], "9999 of 9999 images that do not exist"),
    ],
)
def test_bad_csv(images, rows, message):
    with pytest.raises(UserError, match=message) as error:
        TableSource(write(images, "train.csv", *rows))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "photos/ü.png,a".encode("latin1"), "line 1 has the byte 0xfc.*iconv -f latin1"),
        ("t.csv", "photos/0.png,a".encode("utf-16"), "iconv -f utf-16 -t utf-8 "),
        ("t.jsonl", b'{"path": "photos/0.png"', "line 1, is no JSON"),
        ("t.jsonl", b"[1]", "line 1: expected an object"),
        ("t.jsonl", b'{"foto": 1}', "line 1: no column of paths among foto"),
        ("t.jsonl", b'{"path": 1, "label": 2}', "line 1: the path is no path but int: 1"),
        ("t.parquet", b"PAR1", "is no Parquet file"),
        ("t.csv", b"path\nphotos/0.png\n", "has no labels; expected"),
        ("t.xlsx", b"PK", r"is no dataset: .*\.csv"),
    ],
)
def test_bad_files(images, name, content, message):
    (images / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        sources.open_source(str(images / name))
    assert len(str(error.value)) < 1000


def test_a_table_without_labels_is_read_as_such(images):
    for rows in (["photos/0.png", "photos/1.png"], ["image,id", "photos/0.png,7"]):
        source = sources.open_file(write(images, "t.csv", *rows))
        assert (source.num_classes, source[0]["label"]) == (0, [])


def test_tables_that_do_not_fit(images):
    train = write(images, "train.csv", "photos/0.png,a", "photos/1.png,b")
    with pytest.raises(UserError, match=r"cannot read .*more\.csv"):
        sources.open_source(train, "more")
    for row, message in (("photos/0.png,c", "lacks: c"), ("photos/0.png,a;b", "2 labels")):
        write(images, "test.csv", row)
        with pytest.raises(UserError, match=message):
            sources.open_source(train, "test")
    with pytest.raises(UserError, match=r"cannot read .*none\.csv"):
        sources.open_source(str(images / "none.csv"), "train")

"""`vit-jax prepare` of files of samples: what is written is what was there, stopped or not."""

import json
import os
import pickle
import re
import tarfile

import pytest
import sample_files as files
import tiny_run
from sample_files import NAMES

from vit_jax import cli, train
from vit_jax.errors import UserError
from vit_jax.input_pipeline.classes import names_of
from vit_jax.input_pipeline.preparing import inputs, shards, writing
from vit_jax.input_pipeline.sources import open_source

TRAIN, TEST = range(12), range(20, 25)


def webdataset(folder, label="cls", suffix=".tar", place="") -> list[str]:
    files.write_shard(folder / f"x-train-000009{suffix}", TRAIN[:7], label, place)
    files.write_shard(folder / f"x-train-000010{suffix}", TRAIN[7:], label, place)
    files.write_shard(folder / f"x-val{suffix}", TEST, label, place)
    return [f"{folder}/x-train-{{000009..000010}}{suffix}", f"test={folder}/x-val*"]


def parquet(folder, kind="ClassLabel") -> list[str]:
    for part, numbers in enumerate((TRAIN[:10], TRAIN[10:])):
        name = f"train-{part:05}-of-00002-0a1b2c.parquet"
        files.write_parquet(folder / "data" / name, numbers, kind)
    files.write_parquet(folder / "data" / "validation-00000-of-00001.parquet", TEST, kind)
    return [str(folder)]


def on_disk(folder, kind="ClassLabel") -> list[str]:
    files.write_on_disk(folder / "hf", {"train": TRAIN, "test": TEST}, kind)
    return [str(folder / "hf")]


FORMATS = {
    "numbers in tars": (webdataset, {}, ("0", "1", "2")),
    "names in JSON in packed tars": (
        webdataset, {"label": "json", "suffix": ".tar.gz", "place": "some/folder.v2/"}, NAMES,
    ),
    "Parquet": (parquet, {}, NAMES),
    "Parquet of bytes and names": (parquet, {"kind": "plain"}, NAMES),
    "Arrow": (on_disk, {}, NAMES),
    "several labels": (on_disk, {"kind": "List"}, NAMES),
}  # fmt: skip


def expected(numbers, names, several: bool):
    labels = [[i % 3, (i + 1) % 3][: i % 3] if several else i % 3 for i in numbers]
    return [(files.image(i), label) for i, label in zip(numbers, labels, strict=True)]


def contents(source):
    return [(source[i]["image"], source[i]["label"]) for i in range(len(source))]


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name, capsys):
    make, how, names = FORMATS[name]
    given, to = make(tmp_path, **how), tmp_path / "to" / "My data"
    os.mkdir(tmp_path / "to")
    assert cli.main(["prepare", *given, "--to", str(to)]) == 0
    printed = capsys.readouterr()
    assert f"ready in {to}" in printed.out
    assert "writing train: 12 of 12 samples" in printed.err
    assert os.listdir(tmp_path / "to") == ["My data"]
    for split, numbers in (("train", TRAIN), ("test", TEST), ("val", TEST)):
        source = open_source(str(to), split)
        assert names_of(source) == list(names)
        assert contents(source) == expected(numbers, names, name == "several labels")
    assert len(open_source(str(to), "train[:50%]")) == 6
    # Again, nothing is done; from other files, it is refused.
    before = {file.name: file.stat().st_mtime_ns for file in to.iterdir()}
    assert cli.main(["prepare", *given, "--to", str(to)]) == 0
    assert {file.name: file.stat().st_mtime_ns for file in to.iterdir()} == before
    files.write_shard(tmp_path / "other.tar", [1])
    assert cli.main(["prepare", f"train={tmp_path}/other.tar", "--to", str(to)]) == 2
    assert "prepared from other files" in capsys.readouterr().err


def test_patterns_of_array_record(tmp_path):
    """Some of the files, or those of several folders; the split is in their names."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found = inputs.find(on_disk(tmp_path / name))
        writing.prepare(found, str(tmp_path / f"{name}_data"))
    pattern = f"{tmp_path}/*_data/*.array_record-*"
    source = open_source(pattern, "train")
    assert contents(source) == 2 * expected(TRAIN, NAMES, False)
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)
    assert "example 12" in source[12]["name"]
    assert source[12]["name"].endswith("data-00000-of-00001.arrow: row 1 (0.jpg))")
    assert len(open_source(pattern, "validation")) == 10  # `test` there
    assert len(open_source(pattern)) == 34
    with pytest.raises(UserError, match=r"none is of the split 'minival'.*test, train"):
        open_source(pattern, "minival")
    with pytest.raises(UserError, match=r"no file matches .*none\.array_record"):
        open_source(f"{tmp_path}/none.array_record", "train")
    (tmp_path / "two_data" / "label.labels.txt").write_text("cat\nowl\ndog\n")
    with pytest.raises(UserError, match=r"one_data and .*two_data have other classes"):
        open_source(pattern, "train")
    (tmp_path / "one_data" / "features.json").unlink()
    with pytest.raises(UserError, match=r"one_data has no readable features\.json"):
        open_source(pattern, "train")


def test_a_stopped_program_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)  # Two images each.
    given = webdataset(tmp_path)
    writing.prepare(inputs.find(given), str(tmp_path / "whole"))
    read = []

    def stopped(samples, count, what, after=5):
        for number, sample in enumerate(samples):
            if number == after:
                raise KeyboardInterrupt
            read.append(sample[2].name)
            yield sample

    to = tmp_path / "parts"
    monkeypatch.setattr(shards.os, "cpu_count", lambda: 1)  # Little is read ahead.
    for _ in range(30):
        try:
            writing.prepare(
                inputs.find(given), str(to), watch=lambda *args: stopped(*args, after=7)
            )
            break
        except KeyboardInterrupt:
            assert not to.exists()
            assert (tmp_path / "parts.unfinished").exists()
    # What lay behind the last whole shard was read again, and nothing else.
    assert 17 < len(read) < 17 * 4
    for split in ("train", "test"):
        whole, parts = (open_source(str(tmp_path / name), split) for name in ("whole", "parts"))
        assert contents(parts) == contents(whole)
    kinds = [
        sorted(name.partition("-")[2] for name in os.listdir(tmp_path / n))
        for n in ("whole", "parts")
    ]
    assert kinds[0] == kinds[1]
    assert "train.array_record-00005-of-00006" in kinds[0]
    assert not (tmp_path / "parts.unfinished").exists()


def test_an_unfinished_dataset_of_other_files_is_kept(tmp_path):
    given = webdataset(tmp_path)
    (tmp_path / "to.unfinished").mkdir()
    (tmp_path / "to.unfinished" / "plan.json").write_text(
        json.dumps({"inputs": {}, "class_names": [], "several_labels": False, "samples": {}})
    )
    with pytest.raises(UserError, match="unfinished dataset of other files"):
        writing.prepare(inputs.find(given), str(tmp_path / "to"))
    assert os.listdir(tmp_path / "to.unfinished") == ["plan.json"]


# --- damage --------------------------------------------------------------------------------------


def bad_tar(folder) -> list[str]:
    shard = folder / "train-0.tar"
    good = {f"{i}.{ext}": body for i in (0, 1) for ext, body in
            (("png", files.image(i)), ("cls", b"dog"))}  # fmt: skip
    bad = {
        "no_label.png": files.image(2),
        "no_image.cls": b"cat",
        "half.jpg": files.image(3, "jpeg")[:200],
        "half.cls": b"cat",
        "empty.jpg": b"",
        "empty.cls": b"cat",
    }
    files.write_tar(shard, {**good, **bad, "9.png": files.image(9), "9.cls": b"cat"})
    cut = folder / "train-1.tar"
    files.write_shard(cut, range(4))
    with tarfile.open(cut) as archive:
        end = archive.getmember("002.JPG").offset_data + 100
    cut.write_bytes(cut.read_bytes()[:end])
    return [f"train={folder}/train-*.tar"]


def test_damaged_samples_are_named(tmp_path, capsys):
    given = bad_tar(tmp_path)
    to = str(tmp_path / "to")
    assert cli.main(["prepare", *given, "--to", to]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path}/train-0.tar: no_label: it has no label, only png" in error
    assert not os.path.exists(to)
    assert cli.main(["prepare", *given, "--to", to, "--on-error", "skip"]) == 0
    printed = capsys.readouterr().err
    assert "5 damaged samples were left out" in printed
    damaged = json.loads((tmp_path / "to" / "prepared.json").read_text())["splits"]["train"][
        "damaged"
    ]
    for what, found in zip(
        ("no_label: it has no label", "no_image: it has no image", "half: cannot decode it",
         "empty: its image has no bytes", "train-1.tar: after 001: the tar file is damaged"),
        damaged, strict=True,
    ):  # fmt: skip
        assert what in found
    source = open_source(to, "train")
    assert names_of(source) == ["0", "1", "cat", "dog"]
    assert [source.int2str(source[i]["label"]) for i in range(4)] == ["dog", "dog", "cat", "0"]


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (webdataset, ["x-train-{000009..000012}.tar"], "there is no file .*000011.tar, which"),
        (webdataset, ["train=nothing*.tar"], "no file matches"),
        (webdataset, ["x-{train}.tar"], "expected {FIRST..LAST} or {ONE,OTHER}"),
        (webdataset, ["x-train-{9..7}.tar"], "has no number"),
        (webdataset, ["train=x-*.tar", "x-val.tar"], "x-val.tar is named twice, for train and val"),
        (webdataset, ["x-val.tar", "--label-field", "txt"], "it has no txt, only cls, jpg"),
        (webdataset, ["x-val.tar", "--class-names", "names.txt"], "2 is no number of the 2"),
        (webdataset, ["x-val.tar", "x-train-000009.tar"], None),
        (parquet, ["."], None),
        (parquet, ["train=data", "--label-field", "lable"], "no label: image, id, label. Name"),
        (parquet, ["train=data", "--image-field", "id"], "row 1: its image is no bytes"),
        (on_disk, ["hf/train/data-00000-of-00001.arrow"], None),
        (on_disk, ["a=hf/test", "b=names.txt"], "names.txt is of no format that is known"),
    ],
)  # fmt: skip
def test_arguments(tmp_path, make, arguments, message, monkeypatch, capsys):
    make(tmp_path)
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", *arguments, "--to", "to"]) == (0 if message is None else 2)
    if message is not None:
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert "Traceback" not in error
        assert not os.path.exists("to")


def test_what_needs_preparing_says_so(tmp_path, monkeypatch, capsys):
    webdataset(tmp_path)
    parquet(tmp_path)
    on_disk(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("x-val.tar", "x-train-{000009..000010}.tar", "hf", "hf/test", "data"):
        with pytest.raises(UserError, match="can only be read in a row: `vit-jax prepare"):
            open_source(name, "train")
    with pytest.raises(UserError, match="after `vit-jax prepare TABLE --to FOLDER`"):
        open_source("data/validation-00000-of-00001.parquet", "test")
    assert cli.main(["prepare", "x-val.tar"]) == 2
    assert "--to FOLDER must say where" in capsys.readouterr().err
    assert cli.main(["prepare", "digits", "cifar10"]) == 2
    assert "one name at a time" in capsys.readouterr().err
    assert cli.main(["prepare", "digits", "--to", "to"]) == 2
    assert "there is no file digits" in capsys.readouterr().err


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_on_prepared_data_and_a_mixture(tmp_path, capsys):
    """Trains on a prepared folder and on files of another one; evaluates and predicts."""
    for name, make in (("tars", webdataset), ("parquet", parquet)):
        (tmp_path / name).mkdir()
        splits = inputs.find(make(tmp_path / name))
        writing.prepare(splits, str(tmp_path / f"{name}_data"))
    numbers = (("0", "cat"), ("1", "dog"), ("2", "owl"))
    config = tiny_run.config(tmp_path / "parquet_data", total_steps=2, keep_best=None)
    config.pp.resize_method = "bicubic"
    config.mixture = {
        "folder": {"dataset": str(tmp_path / "parquet_data"), "split": "train[:50%]"},
        "files": {
            "dataset": f"{tmp_path}/tars_data/*-train.array_record*",
            "weight": 3,
            "classes": numbers,
        },
    }
    run = tmp_path / "run"
    train.train_and_evaluate(config, run)
    said = capsys.readouterr()
    assert "training on a mixture of 75 % of files (" in said.out
    info = json.loads((run / "run.json").read_text())
    assert info["class_names"] == list(NAMES)
    assert info["config"]["mixture"]["files"]["weight"] == 3
    assert info["config"]["mixture"]["files"]["classes"] == [list(pair) for pair in numbers]

    files_of_test = f"{tmp_path}/parquet_data/*-validation.array_record*"
    assert cli.main(["eval", str(run), "--dataset", files_of_test, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_examples"] == len(TEST)
    rows = tmp_path / "rows.csv"
    given = ["predict", str(run), "--dataset", str(tmp_path / "tars_data"), "--output", str(rows)]
    assert cli.main(given) == 0
    assert len(rows.read_text().splitlines()) == 1 + len(TEST)

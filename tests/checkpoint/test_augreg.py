"""AugReg's index: which file a short name means, and `vit-jax models --augreg`."""

import csv
import json
import logging
import re

import pytest
import rich.console

from vit_jax import cli, waiting
from vit_jax.checkpoint import augreg
from vit_jax.configs import augreg as recipe
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.train.pretrained import find_pretrained

COLUMNS = (
    *("name", "ds", "lr", "aug", "wd", "do", "sd", "best_val", "final_val", "final_test"),
    *("adapt_ds", "adapt_lr", "adapt_steps", "adapt_resolution"),
    *("adapt_final_val", "adapt_final_test", "params", "infer_samples_per_sec"),
    *("filename", "adapt_filename"),
)
# name, file, ds, wd, final_val, adapt_ds, adapt_resolution, adapt_final_val
CHECKPOINTS = [
    ("B/16", "B_16-i21k-a", "i21k", 0.1, 0.47, "cifar100", 224, 0.91),
    ("B/16", "B_16-i21k-a", "i21k", 0.1, 0.47, "imagenet2012", 384, 0.85),
    ("B/16", "B_16-i21k-b", "i21k", 0.03, 0.49, "imagenet2012", 384, 0.84),
    ("B/16", "B_16-i1k-c", "i1k", 0.1, 0.8, "imagenet2012", 384, 0.79),
    ("R+Ti/16", "R_Ti_16-i21k-d", "i21k", 0.1, 0.31, "imagenet2012", 224, 0.75),
    ("R+Ti/16", "R_Ti_16-i21k-e", "i21k", 0.03, 0.32, "imagenet2012", 384, ""),
    ("R+Ti/16", "R_Ti_16-i21k-f", "i21k_30", 0.1, 0.9, "imagenet2012", 384, 0.71),
    ("R+Ti/16", "R_Ti_16-i1k-g", "i1k", 0.1, 0.7, "imagenet2012", 384, 0.7),
    ("Ti/16", "Ti_16-i21k-h", "i21k", 0.1, "", "imagenet2012", 384, 0.72),
    ("S/16", "S_16-i1k-i", "i1k", 0.1, 0.75, "imagenet2012", 384, 0.76),
]


def adapted(file, ds, resolution):
    return f"{file}--{ds}-steps_20k-lr_0.03-res_{resolution}"


@pytest.fixture
def index(tmp_path):
    path = tmp_path / augreg.INDEX
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for name, file, ds, wd, val, adapt_ds, resolution, adapt_val in CHECKPOINTS:
            table.writerow(
                dict.fromkeys(COLUMNS, "0.5")
                | {"name": name, "filename": file, "ds": ds, "wd": wd, "aug": "light1"}
                | {"final_val": val, "adapt_ds": adapt_ds, "adapt_resolution": resolution}
                | {"adapt_final_val": adapt_val, "adapt_final_test": "nan", "adapt_steps": "20k"}
                | {"adapt_filename": adapted(file, adapt_ds, resolution)}
            )
    return path


def edited(index, old, new):
    text = index.read_text()
    assert old in text
    index.write_text(text.replace(old, new, 1))


# --- which file a short name means ---------------------------------------------------------------


def found(argument, folder):
    config = recipe.get_config(argument)
    config.pretrained_dir = str(folder)
    return find_pretrained(common.with_defaults(config))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("R_Ti_16", "R_Ti_16-i21k-e"),  # neither of 30 epochs, nor of ImageNet, nor best adapted
        ("B_16", "B_16-i21k-b"),
        ("B_16-i21k-a", "B_16-i21k-a"),  # in full: that file
        ("R_Ti_16-i1k-g", "R_Ti_16-i1k-g"),
        ("B_16-i21k-a--cifar100-res_224", "B_16-i21k-a--cifar100-res_224"),
    ],
)
def test_a_short_name_takes_the_best_upstream(index, argument, expected, caplog):
    path = index.with_name(f"{expected}.npz")
    path.write_bytes(b"")
    with caplog.at_level(logging.INFO, "vit_jax.train.pretrained"):
        assert found(argument, index.parent) == path
    assert ("has the best final_val" in caplog.text) == ("-" not in argument)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("S_16", "lists no ImageNet-21k checkpoint of 'S_16'"),
        ("Ti_16", "lists no ImageNet-21k checkpoint of 'Ti_16' with its final_val"),
        ("L_16-i21k-x", r"no checkpoint .*L_16-i21k-x\.npz"),
        ("B_16", r"no checkpoint .*B_16-i21k-b\.npz"),
    ],
)
def test_what_the_index_does_not_lead_to(index, argument, message):
    with pytest.raises(UserError, match=message):
        found(argument, index.parent)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("final_val", "val", "no index of AugReg's checkpoints: it has no final_val among"),
        (",0.47,", ",good,", "expected nothing but numbers as final_val"),
        (",light1,", ",", r"row 1: expected 20 cells, found 19"),
        (",aug,", ",ds,", "has a column twice"),
        ("B/16", '"B/16', "is no table of checkpoints"),
        ("B/16", "B\udcff16", "is no table of checkpoints"),
    ],
)
def test_broken_indices(index, old, new, message):
    text = index.read_text()
    assert old in text
    index.write_bytes(text.replace(old, new, 1).encode("utf-8", "surrogateescape"))
    with pytest.raises(
        UserError, match=rf"{message}.*It lists .*gs://vit_models/augreg/index\.csv"
    ):
        found("B_16", index.parent)


def test_an_empty_and_a_missing_index(index):
    index.write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(UserError, match="lists no checkpoints"):
        found("B_16", index.parent)
    index.unlink()
    with pytest.raises(UserError, match=r"No such file.*authors recommend 'R_Ti_16-i21k-300ep"):
        found("R_Ti_16", index.parent)


def test_the_kinds_of_columns(index):
    table = augreg.read_index(str(index), {})
    texts = {"name", "ds", "aug", "adapt_ds", "filename", "adapt_filename", "adapt_steps"}
    assert {name for name, kind in table.columns.items() if kind is str} == texts
    first, empty = table.rows[0], table.rows[5]
    assert (first["adapt_resolution"], first["wd"], first["adapt_steps"]) == (224, 0.1, "20k")
    assert (empty["adapt_final_val"], empty["adapt_final_test"]) == (None, None)


# --- vit-jax models --augreg ---------------------------------------------------------------------


@pytest.fixture
def models(index, capsys):
    """Runs `vit-jax models` on the index: (status, stdout, stderr)."""

    def run(*words):
        status = cli.main(["models", *words, "--index", str(index)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_a_query_lists_the_best_after_fine_tuning_first(models):
    status, out, err = models("--augreg", 'name=="B/16" and adapt_resolution==384', "--json")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [row["adapt_final_val"] for row in rows] == [0.85, 0.84, 0.79]
    assert set(rows[0]) == set(COLUMNS)
    assert rows[0]["adapt_filename"] == adapted("B_16-i21k-a", "imagenet2012", 384)


def test_a_row_without_the_figure_comes_last(models):
    _, out, _ = models("--augreg", 'name in ("R+Ti/16",) and ds == "i21k"', "--json")
    assert [row["adapt_final_val"] for row in json.loads(out)] == [0.75, None]


def test_the_table_of_a_query(models):
    status, out, _ = models("--augreg", 'ds == "i21k" and not wd > 0.05')
    header, _, *rows = (line.split() for line in out.splitlines() if line.strip())
    assert status == 0
    assert header == ["name", "adapt_final_val", "final_val", "adapt_filename"]
    assert rows == [
        ["B/16", "0.8400", "0.4900", adapted("B_16-i21k-b", "imagenet2012", 384)],
        ["R+Ti/16", "–", "0.3200", adapted("R_Ti_16-i21k-e", "imagenet2012", 384)],
    ]


def test_a_narrow_terminal_folds_the_table(models, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    terminal = rich.console.Console(force_terminal=True)
    monkeypatch.setattr(waiting, "console", lambda **kinds: terminal)
    _, out, _ = models("--augreg", "wd > 0")
    lines = re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()
    assert 50 < max(map(len, lines)) <= 60
    assert len(lines) > 2 * len(CHECKPOINTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--augreg", 'nam=="B/16"'], "no column 'nam'. Did you mean 'name'"),
        (["--augreg", 'name=="B/99"'], "none of 10 checkpoints in .* is meant by the query"),
        (["--augreg", "name=B/16"], "is no query"),
        (["--augreg", "wd > 0", "B/16"], "--augreg takes its query alone"),
        (["--augreg", "wd > 0", "--checkpoints"], "not allowed with argument"),
        ([], "--index goes with --augreg QUERY"),
    ],
)
def test_bad_queries(models, words, message):
    status, out, err = models(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "Traceback" not in err
    assert re.match(f"vit-jax: error: .*{message}", err)


def test_an_index_of_another_kind(models, index):
    edited(index, "adapt_filename", "file")
    status, _, err = models("--augreg", "wd > 0")
    assert status == 2
    assert "it has no adapt_filename among its columns" in err

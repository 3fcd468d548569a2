"""`vit-jax plan --compare`: what differs between two plans that were written as JSON."""

import json

import pytest

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.plan import compare

CLASSES = {"moves": {"count": 9, "hbm_bytes": 4_000_000_000, "cycles": 5}}
FIRST = {
    "topology": "v5e:4x4",
    "device_kind": "TPU v5 lite",
    "devices": 16,
    "mesh": {"data": 16},
    "batch": 1024,
    "accum_steps": 1,
    "memory": {"arguments": 1_000_000_000, "total": 3_500_000_000},
    "hbm_traffic": 16_000_000_000,
    "flops": 6.75e12,
    "seconds": {"compute": 0.034, "hbm": 0.02},
    "classes": CLASSES,
    "collectives": {"all-reduce": {"count": 3, "bytes": 173_000_000}},
}
SECOND = FIRST | {
    "batch": 512,
    "memory": {"arguments": 1_000_000_000, "total": 2_800_000_000},
    "hbm_traffic": 12_000_000_000,
    "flops": None,
    "seconds": {"hbm": 0.015},
    "classes": CLASSES | {"sort": {"count": 1, "hbm_bytes": 1_000_000_000, "cycles": 5}},
}


def test_every_difference_has_its_row():
    assert compare.changed(FIRST, SECOND) == ["batch: 1024 -> 512"]
    rows = {row.name: row.cells()[1:] for row in compare.rows(FIRST, SECOND)}
    assert rows == {
        "memory arguments": ("1.00", "1.00", "+0.00", "1.00"),
        "memory total": ("3.50", "2.80", "-0.70", "0.80"),
        "HBM traffic": ("16.00", "12.00", "-4.00", "0.75"),
        "FLOPs": ("6.75", "", "", ""),
        "time, FLOPs at peak": ("34.00", "", "", ""),
        "time, HBM traffic": ("20.00", "15.00", "-5.00", "0.75"),
        "time at least": ("34.00", "15.00", "-19.00", "0.44"),
    }
    # What is the same in both is not told, and a class that one lacks is 0 there.
    assert [row.cells() for row in compare.class_rows(FIRST, SECOND)] == [
        ("sort (GB)", "0.00", "1.00", "+1.00", "")
    ]
    assert compare.collective_rows(FIRST, SECOND) == []


def test_the_command_prints_tables_or_json_and_refuses_what_is_no_plan(tmp_path, capsys):
    first, second, other = (str(tmp_path / name) for name in ("a.json", "b.json", "c.json"))
    for path, plan in ((first, FIRST), (second, SECOND), (other, {"batch": 1})):
        (tmp_path / path).write_text(json.dumps(plan))
    assert cli.main(["plan", "--compare", first, second]) == 0
    shown = capsys.readouterr().out
    for text in ("batch: 1024 -> 512", "-4.00", "sort"):
        assert text in shown
    assert cli.main(["plan", "--compare", first, second, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"][2]["difference"] == pytest.approx(-4)
    assert cli.main(["plan", "--compare", first, other]) == 2
    assert "not a plan: it has no 'topology'" in capsys.readouterr().err
    assert cli.main(["plan", "--compare", first, second, "--set", "batch=2"]) == 2
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        compare.read(other)

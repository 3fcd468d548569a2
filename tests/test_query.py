"""The language that chooses rows: what it means, and that it means nothing else."""

import os

import pytest

from vit_jax import query
from vit_jax.errors import UserError

COLUMNS = {"name": str, "ds": str, "wd": float, "res": float, "val": float}
ROWS = {
    "a": {"name": "B/16", "ds": "i21k", "wd": 0.1, "res": 384, "val": 0.8},
    "b": {"name": "B/16", "ds": "i1k", "wd": 0.03, "res": 224, "val": 0.6},
    "c": {"name": "Ti/16", "ds": "i21k", "wd": 0.1, "res": 224, "val": None},
    "d": {"name": "R26+S/32", "ds": "i21k_30", "wd": 0.1, "res": 384, "val": -0.5},
}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('name == "B/16"', "ab"),
        ("name=='B/16' and res==384", "a"),
        ('name != "B/16"', "cd"),
        ("res == 384.0", "ad"),
        ("wd < 0.1", "b"),
        ("val > 0.6", "a"),
        ("val >= 0.6", "ab"),
        ("0 < val <= .6", "b"),
        ("val == -0.5", "d"),
        ("val != 0.8", "bcd"),  # an empty cell is not 0.8
        ("val < 9 or val >= 9", "abd"),  # and is neither below nor above
        ("not val < 9", "c"),
        ("wd > 1 and res > 1 or val < 0", "d"),  # `and` binds more tightly than `or`
        ("wd > 1 and (res > 1 or val < 0)", ""),
        ("not (wd > 0.05 or res == 384)", "b"),
        ('name in ("B/16", "Ti/16")', "abc"),
        ('ds not in ["i21k"]', "bd"),
        ("res in {224}", "bc"),
        ("res in ()", ""),
        ("384 == res", "ad"),
        ("wd < val", "ab"),
        ('"B" < name < "C"', "ab"),
        ("  res\t==\n384  ", None),  # a line's end stands in parentheses only, as in Python
        ("(res\n== 384)", "ad"),
    ],
)
def test_what_is_meant(text, meant):
    if meant is None:
        with pytest.raises(UserError, match="is no query"):
            query.compiled(text, COLUMNS)
        return
    is_meant = query.compiled(text, COLUMNS)
    assert [name for name, row in ROWS.items() if is_meant(row)] == list(meant)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no query"),
        ('name = "B/16"', r"is no query: .*such as 'name == \"B/16\""),
        ("name ==", "is no query"),
        ("(" * 900, "is no query"),
        ("1" * 1001, "at most 1000 characters; this one has 1001"),
        ("\0", "is no query"),
        ('nme == "B/16"', "no column 'nme'. Did you mean 'name'.* Known: name, ds, wd, res, val"),
        ("ds == i21k", "no column 'i21k'.* A text stands in quotes"),
        ("name == B/16", "B/16 is no column, number or quoted text"),
        ('wd == "0.1"', '"0.1" is a text, and wd is a number'),
        ("name == 16", "16 is a number, and name is a text"),
        ("name == wd", "wd is a number, and name is a text"),
        ('name in ("B/16", 3)', "3 is a number, and name is a text"),
        ('name in "B/16"', '"B/16" is no list'),
        ('name is "B/16"', "compare with == or !="),
        ("wd == True", "True is no column"),
        ("wd == -True", "True is no column"),
        ("wd == None", "None is no column"),
        ("wd == 1j", "1j is no column"),
        ("name", "name is no comparison"),
        ("True", "True is no comparison"),
        ("wd > 0.05 & res == 384", "0.05 & res is no column.*`and`, `or` and `not` join"),
        ("__import__('os').mkdir('made')", "is no comparison"),
        ("wd == __import__('os').mkdir('made')", "is no column"),
        ("name.upper() == 'B/16'", r"name.upper\(\) is no column"),
        ("name == f'{wd}'", "is no column"),
        ("[x for x in name] == 1", "is no column"),
        ("(lambda: 1)() == 1", "is no column"),
        ("(wd := 1) == 1", "is no column"),
        ("wd in [*name]", "is no column"),
        ("wd if wd > 1 else wd < 1", "is no comparison"),
    ],
)
def test_what_is_no_query_is_one_message(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"(?s){message}"):
        query.compiled(text, COLUMNS)
    assert not os.listdir(tmp_path)


def test_deep_queries_are_answered():
    assert query.compiled("not " * 200 + "wd > 0.05", COLUMNS)(ROWS["a"])

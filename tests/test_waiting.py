"""What is said while something takes long."""

import os
import pty
import re
import subprocess
import sys

import pytest
from processes import read_terminal

from vit_jax import cli
from vit_jax.waiting import console, waiting


def test_a_line_at_the_start_and_one_at_the_end(capsys):
    with waiting("cooking"):
        assert capsys.readouterr().err == "cooking …\n"
    assert capsys.readouterr().err == "cooking: done in 0 s\n"


def test_an_error_is_no_end(capsys):
    with pytest.raises(ValueError, match="burnt"), waiting("cooking"):
        raise ValueError("burnt")
    assert "done" not in capsys.readouterr().err


def test_a_terminal_shows_a_clock_and_what_was_written(tmp_path):
    (tmp_path / "before").write_bytes(bytes(9_000_000))
    code = (
        "import pathlib, sys, time; from vit_jax.waiting import waiting\n"
        "with waiting('cooking', [sys.argv[1], '/nowhere']):\n"
        "  (pathlib.Path(sys.argv[1]) / 'new').write_bytes(bytes(3_000_000)); time.sleep(1.5)"
    )
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    words = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(words, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = read_terminal(master)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*\w", "", seen.decode())
    assert "cooking 0:00:01 3 MB written" in text
    assert text.rstrip().endswith(("cooking: done in 2 s", "cooking: done in 1 s"))


def test_preparing_a_dataset_says_what_it_does_in_our_words(tmp_path, capfd):
    assert cli.main(["prepare", "digits", "--tfds-data-dir", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(
        r"preparing the dataset 'digits' \(once\) …\n.*\(once\): done in \d+ s\n", err
    )
    assert "Unknown size" not in out
    assert out.rstrip().endswith(f"ready in {tmp_path}/digits/1.0.0")


@pytest.mark.parametrize("stderr", [False, True])
def test_colours_that_are_forced_make_no_terminal_of_a_file(monkeypatch, capsys, stderr):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not console(stderr=stderr).is_terminal

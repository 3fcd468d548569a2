"""One run a workdir: the second is refused, and a crash leaves no lock behind."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from vit_jax.errors import UserError
from vit_jax.train import run_lock as module
from vit_jax.train.run_lock import run_lock

HOLD = (
    "import sys, time; from vit_jax.train.run_lock import run_lock\n"
    "with run_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
)


def note(folder: pathlib.Path) -> dict:
    return json.loads((folder / "run.lock").read_text())


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_run_is_refused_and_told_of_the_first(tmp_path, holder):
    with pytest.raises(UserError) as error, run_lock(tmp_path):
        pass
    message = str(error.value)
    assert f"process {holder.pid} on {socket.gethostname()}, begun at " in message
    assert note(tmp_path)["begun"] in message
    assert note(tmp_path)["process"] == holder.pid  # the refused one left it as it was


def test_a_killed_run_leaves_no_lock(tmp_path, holder, capsys):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_lock(tmp_path):
        assert note(tmp_path)["process"] == os.getpid()
    assert f"process {holder.pid}" in (err := capsys.readouterr().err)
    assert "has ended: this run takes over" in err
    assert (tmp_path / "run.lock").read_bytes() == b""
    with run_lock(tmp_path):  # after an end in order nothing is said
        pass
    assert capsys.readouterr().err == ""


def test_threads_of_one_process_exclude_each_other(tmp_path):
    with run_lock(tmp_path), pytest.raises(UserError, match="is in use"), run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(module, "WATCH", 0.5)
    monkeypatch.setattr(module, "SETTLE", 0.2)


def left_by(folder: pathlib.Path, host: str) -> pathlib.Path:
    path = folder / "run.lock"
    path.write_text(json.dumps({"host": host, "process": 7, "begun": "2026-01-02 03:04:05"}))
    return path


def no_locks(monkeypatch) -> None:
    def refused(*args):
        raise OSError(module.errno.ENOLCK, "no locks here")

    monkeypatch.setattr("fcntl.flock", refused)


@pytest.mark.parametrize("locks", [True, False])
def test_a_dead_run_of_another_host_is_taken_over(tmp_path, quick, monkeypatch, capsys, locks):
    if not locks:
        no_locks(monkeypatch)
    left_by(tmp_path, "elsewhere")
    with run_lock(tmp_path):
        assert note(tmp_path)["process"] == os.getpid()
    assert "process 7 on elsewhere, begun at 2026-01-02 03:04:05" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_a_living_run_is_seen_where_locks_are_not_shared(tmp_path, quick, monkeypatch, host):
    no_locks(monkeypatch)
    path, ended = left_by(tmp_path, host), threading.Event()
    beating = threading.Thread(target=module._beat, args=(path, note(tmp_path), ended))
    beating.start()
    try:
        with pytest.raises(UserError, match=f"process 7 on {host}"), run_lock(tmp_path):
            pass
    finally:
        ended.set()
        beating.join()
    assert note(tmp_path)["process"] == 7


def test_the_holder_shows_that_it_lives(tmp_path, quick):
    with run_lock(tmp_path):
        before, until = module._pulse(tmp_path / "run.lock"), time.monotonic() + 10
        while module._pulse(tmp_path / "run.lock") == before:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_of_two_that_start_at_once_without_locks_one_goes_on(tmp_path, quick, monkeypatch):
    no_locks(monkeypatch)
    both, refused = threading.Barrier(2), []

    def require_dead(path, trusted):
        both.wait()  # each has found the file empty

    def hold(process):
        try:
            with run_lock(tmp_path):
                time.sleep(0.3)
        except UserError as error:
            refused.append(str(error))

    monkeypatch.setattr(module, "_require_dead", require_dead)
    monkeypatch.setattr(module, "this_run", lambda: {"process": threading.get_ident()})
    threads = [threading.Thread(target=hold, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1


def test_a_note_that_nobody_can_read_is_no_lock(tmp_path):
    (tmp_path / "run.lock").write_bytes(b'{"host": "el')
    with run_lock(tmp_path):
        assert note(tmp_path)["process"] == os.getpid()

"""Trackers that work, fail, hang or are missing; and the real ones, which write into files here."""

import functools
import json
import threading
import time

import pytest
import tracker_fakes
from tracker_fakes import Exits, FailsOnce, FailsToStart, Hangs, HangsAtTheEnd, Healthy

from vit_jax.errors import Preempted, UserError
from vit_jax.train import trackers
from vit_jax.train.trackers import Trackers, guarded, ids

CONFIG = {"model": {"hidden_size": 8}, "optim": "adamw", "decay_rules": [[".*", 1.0]]}
START = {"step": 0, "command": ["main.py"], "devices": {"kind": "cpu", "count": 4}}
REPORTS = [(step, {"train_loss": 1.0 / step, "lr": 0.1}) for step in range(1, 5)]


@pytest.fixture
def install(monkeypatch):
    return functools.partial(tracker_fakes.install, monkeypatch)


def track(folder, *names, reports=REPORTS, error=None):
    tracked = Trackers(names, folder, CONFIG, START)
    for step, scalars in reports:
        tracked.write(step, scalars)
    tracked.close(error)


def test_everything_in_order_and_the_key_survives(tmp_path, install):
    healthy = Healthy()
    install(json=healthy)
    track(tmp_path, "json")
    start = ("start", tmp_path.name, "adamw")
    assert healthy.calls == [(*start, None), *REPORTS, ("close", "finished")]
    assert ids.load(tmp_path) == {"json": "the key"}
    healthy.calls.clear()
    track(tmp_path, "json", reports=REPORTS[2:], error=Preempted(4))
    assert healthy.calls == [(*start, "the key"), *REPORTS[2:], ("close", "stopped")]
    (tmp_path / ids.FILE).write_text("{")  # begins anew
    healthy.calls.clear()
    track(tmp_path, "json", reports=(), error=ValueError())
    assert healthy.calls == [(*start, None), ("close", "failed")]


@pytest.mark.parametrize(
    ("broken", "kept", "said"),
    [
        (FailsToStart(), [], "failed, and the run goes on: no server;"),
        (FailsOnce(), [1, 3, 4, "close"], "lacks 1 reports"),
        (Exits(), ["close"], "lacks 4 reports"),
        (Hangs(), [], "has not ended in time"),
        (HangsAtTheEnd(), [1, 2, 3, 4], "has not ended in time"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_one_that_fails_disturbs_nobody(broken, kept, said, tmp_path, install, caplog):
    healthy = Healthy()
    install(json=broken, csv=healthy)
    track(tmp_path, "json", "csv")
    assert [call[0] for call in healthy.calls[1:]] == [1, 2, 3, 4, "close"]
    assert [call[0] for call in broken.calls if call[0] != "start"] == kept
    assert f"tracker json {said}" in caplog.text
    assert "tracker csv" not in caplog.text


def test_one_that_keeps_failing_is_tried_from_time_to_time(tmp_path, install, monkeypatch, caplog):
    monkeypatch.setattr(guarded, "FAILURES", 2)
    healthy = Healthy()
    working = threading.Event()

    class Away(Healthy):
        tries = 0

        def start(self, run, key):
            type(self).tries += 1
            if not working.is_set():
                raise ConnectionError("away")
            return super().start(run, key)

    away = Away()
    install(json=away, csv=healthy)
    tracked = Trackers(("json", "csv"), tmp_path, CONFIG, START)
    for report in REPORTS:
        tracked.write(*report)
    guard = tracked._guarded[0]
    until = time.monotonic() + 10
    while guard._lost < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert Away.tries == 2
    working.set()
    guard._again = 0.0  # the pause is over
    tracked.write(5, {"lr": 0.1})
    tracked.close()
    assert [call[0] for call in away.calls] == ["start", 5, "close"]
    assert caplog.text.count("failed, and the run goes on: away") == 1


def test_more_reports_than_wait_are_counted(tmp_path, install, monkeypatch, caplog):
    monkeypatch.setattr(guarded, "WAITING", 3)
    gate = threading.Event()

    class Slow(Healthy):
        def start(self, run, key):
            gate.wait()
            return super().start(run, key)

    slow = Slow()
    install(json=slow)
    tracked = Trackers(("json",), tmp_path, CONFIG, START)
    for step in range(10):
        tracked.write(step, {})
    gate.set()
    tracked.close()
    assert slow.calls[-1] == ("close", "finished")
    lost = 10 - len(slow.calls[1:-1])
    assert lost >= 6
    assert f"lacks {lost} reports" in caplog.text


def test_one_that_is_not_installed_is_said_and_left_out(tmp_path, install, caplog, monkeypatch):
    healthy = Healthy()
    (tmp_path / "a_folder").mkdir()  # such as a tracker leaves behind, no package
    monkeypatch.syspath_prepend(tmp_path)
    install(no_such_package=Healthy(), a_folder=Healthy(), json=healthy)
    track(tmp_path, "no_such_package", "a_folder", "json")
    for name in ("no_such_package", "a_folder"):
        assert f"{name} is not installed: pip install it" in caplog.text
    assert len(healthy.calls) == len(REPORTS) + 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("wandb", r"expected different names in a tuple, such as \('wandb',\)"),
        (("wandb", "wandb"), "expected different names"),
        (("wandbb",), "unknown tracker 'wandbb'. Did you mean 'wandb'"),
        ((1,), "unknown tracker '1'"),
    ],
)
def test_bad_names(names, message):
    with pytest.raises(UserError, match=message):
        trackers.check(names)


# ---- the real ones: two starts of one run, the second of which repeats a step ----


@pytest.fixture
def patient(monkeypatch):
    """A busy machine may take longer than a run that is stopped waits for its trackers."""
    monkeypatch.setattr(trackers, "CLOSING", 120.0)
    monkeypatch.setattr(trackers, "STOPPING", 120.0)


def two_starts(folder, name):
    track(folder, name, error=Preempted(4))
    time.sleep(1 - time.time() % 1)  # wandb names its files by the second
    track(folder, name, reports=[*REPORTS[3:], (5, {"accuracy_test": 0.5})])
    return ids.load(folder)[name]


def wandb_records(content: bytes):
    """The records of a file of one block: 7 bytes of its own, then a header of 7 for each."""
    assert len(content) < 2**15
    place = 7
    while place < len(content):
        size = int.from_bytes(content[place + 4 : place + 6], "little")
        place += 7
        yield content[place : place + size]
        place += size


@pytest.mark.usefixtures("patient")
def test_wandb_offline(tmp_path, monkeypatch, capfd):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr("vit_jax.train.trackers.wandb.CLOSING", 120.0)
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["main.py", "--token=secret"])
    key = two_starts(tmp_path, "wandb")
    wandb.teardown()  # ends its own process, which writes the files
    steps, names = [], set()
    for path in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        assert path.name == f"run-{key}.wandb"
        for data in wandb_records(path.read_bytes()):
            record = Record.FromString(data)
            values = {
                item.key or item.nested_key[0]: json.loads(item.value_json)
                for item in record.history.item
            }
            steps += [values["step"]] if values else []
            names |= values.keys()
        assert b"secret" not in path.read_bytes()
    assert sorted(steps) == [1, 2, 3, 4, 4, 5]
    assert {"train_loss", "lr", "accuracy_test"} <= names
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("patient")
def test_mlflow_in_files(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    (tmp_path / "run").mkdir()
    key = two_starts(tmp_path / "run", "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    run = client.get_run(key)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["model.hidden_size"] == "8"
    assert json.loads(run.data.tags["vit_jax.start"]) == START
    history = client.get_metric_history(key, "train_loss")
    assert [(x.step, x.value) for x in history] == [
        (step, scalars["train_loss"]) for step, scalars in [*REPORTS, REPORTS[3]]
    ]
    assert run.data.metrics["accuracy_test"] == 0.5


def test_trackio_in_files(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    key = two_starts(tmp_path, "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("vit-jax", key)
    assert [line["step"] for line in logs] == [1, 2, 3, 4, 4, 5]
    assert logs[-1]["accuracy_test"] == 0.5

"""metrics.jsonl and TensorBoard events through kills and resumes; what an evaluation counts."""

import contextlib
import json
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vit_jax.errors import UserError
from vit_jax.evaluate.top_k import counts
from vit_jax.train import metrics
from vit_jax.train.metrics import MetricWriter


def write(workdir, first_step, steps, offset=0.0):
    writer = MetricWriter(workdir, first_step)
    for step in steps:
        writer.write(step, {"train_loss": step / 2 + offset, "lr": 0.1})
    writer.close()


def steps(workdir):
    return [line["step"] for line in metrics.read(workdir)]


# --- metrics.jsonl -------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, 0, [1, 2])
    assert metrics.read(tmp_path) == [
        {"step": 1, "train_loss": 0.5, "lr": 0.1},
        {"step": 2, "train_loss": 1.0, "lr": 0.1},
    ]


def test_lines_are_there_without_closing(tmp_path):
    """A killed process closes nothing."""
    writer = MetricWriter(tmp_path, 0)
    writer.write(1, {"train_loss": 0.5})
    assert steps(tmp_path) == [1]
    assert [s for s, _ in visible(tmp_path)] == [1]
    writer.close()


def test_writing_loads_no_torch(tmp_path):
    """It is seconds of every start of a run, and TensorBoard's package asks for it."""
    code = (
        "import sys; from vit_jax.train.metrics import MetricWriter; "
        "MetricWriter(sys.argv[1], 0).close(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


@pytest.mark.parametrize("first_step", [0, 1, 4, 6, 9])
def test_a_resumed_run_cuts_back_to_its_checkpoint(tmp_path, first_step):
    write(tmp_path, 0, [1, 2, 4, 4, 6])  # an evaluation has a line of its own
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    write(tmp_path, first_step, [10])
    after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert after[:-1] == [line for line in before if json.loads(line)["step"] <= first_step]
    assert steps(tmp_path)[-1] == 10
    assert not list(tmp_path.glob("*.tmp"))


LINE = '{"step": 3, "train_loss": 1.5, "lr": 0.1}'


@pytest.mark.parametrize("length", range(1, len(LINE) + 1))
def test_a_line_that_was_being_written_is_dropped_and_not_joined(tmp_path, length):
    write(tmp_path, 0, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(LINE[:length])
    whole = [1, 2, 3] if length == len(LINE) else [1, 2]
    assert steps(tmp_path) == whole
    write(tmp_path, 3, [4])
    assert steps(tmp_path) == [*whole, 4]


def test_a_line_torn_within_a_character_is_dropped(tmp_path):
    write(tmp_path, 0, [1])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 2, "note": "é'.encode()[:-1])
    assert steps(tmp_path) == [1]
    write(tmp_path, 1, [2])
    assert steps(tmp_path) == [1, 2]


def test_reading_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"not the workdir of a run: no readable metrics\.jsonl"):
        metrics.read(tmp_path)


@pytest.mark.parametrize("full", ["metrics", "events"])
def test_a_full_disk_is_one_message(tmp_path, full):
    """/dev/full refuses every write. The run must end, not hang."""
    writer = MetricWriter(tmp_path, 0)
    if full == "metrics":
        writer._file.close()
        writer._file = open("/dev/full", "w")  # noqa: SIM115
    else:
        record_writer = writer._events._file._py_recordio_writer
        record_writer._writer.close()
        record_writer._writer = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot write the metrics of .*No space left"):
        writer.write(1, {"train_loss": 0.0})
    with pytest.raises(UserError, match="No space left"):
        writer.close()
    if full == "events":
        with contextlib.suppress(OSError):
            record_writer._writer.close()


# --- TensorBoard ---------------------------------------------------------------------------------


def events(workdir):
    """Every event of every file, in the order in which TensorBoard loads them."""
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def visible(workdir) -> list[tuple[int, float]]:
    """(step, train_loss) that TensorBoard shows: a start purges its step and those after it."""
    shown = []
    for event in events(workdir):
        if event.session_log.status == SessionLog.START:
            shown = [(step, value) for step, value in shown if step < event.step]
        for value in event.summary.value:
            if value.tag == "train_loss":
                shown.append((event.step, value.simple_value))
    return shown


@pytest.mark.parametrize("first_step", [0, 2, 3])
def test_tensorboard_shows_no_step_twice(tmp_path, first_step, monkeypatch):
    """Also for a run that was killed before its first checkpoint, and starts again from 0."""
    monkeypatch.setattr(metrics.os, "getpid", lambda: 100)
    write(tmp_path, 0, [1, 2, 3])
    monkeypatch.setattr(metrics.os, "getpid", lambda: 200)  # restarted within the same second
    write(tmp_path, first_step, range(first_step + 1, 5), offset=1.0)
    before = [(step, step / 2) for step in range(1, first_step + 1)]
    after = [(step, step / 2 + 1) for step in range(first_step + 1, 5)]
    assert visible(tmp_path) == before + after


def test_tensorboard_reads_the_file(tmp_path):
    """Its format and checksums, by TensorBoard's own reader where it is installed."""
    write(tmp_path, 0, [1, 2])
    first, *_ = events(tmp_path)
    assert first.file_version == "brain.Event:2"
    assert visible(tmp_path) == [(1, 0.5), (2, 1.0)]


# --- counts --------------------------------------------------------------------------------------


def count(*args):
    return {name: int(n) for name, n in counts(*map(jnp.asarray, args)).items()}


def test_single_labels_are_counted_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 12)), rng.integers(0, 12, 200)
    mask = (np.arange(200) < 190).astype(np.float32)
    got = count(logits.astype(np.float32), np.eye(12, dtype=np.float32)[labels], mask)
    real = {"y_true": labels[:190], "y_score": logits[:190], "labels": range(12)}
    assert got == {
        "counted": 190,
        "correct": top_k_accuracy_score(**real, k=1, normalize=False),
        "correct_top5": top_k_accuracy_score(**real, k=5, normalize=False),
    }
    assert 0 < got["correct"] < got["correct_top5"] < 190


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0], (1, 0, 0)),  # the least likely of seven
        ([6], (1, 1, 1)),
        ([2], (1, 0, 1)),  # the fifth
        ([1], (1, 0, 0)),  # the sixth
        ([0, 6], (1, 1, 1)),  # any of them is right
        ([0, 2], (1, 0, 1)),
        ([], (0, 0, 0)),  # not counted
    ],
)
def test_several_labels_as_imagenet_real_has_them(labels, expected):
    one_hot = np.isin(np.arange(7), labels).astype(np.float32)[None]
    logits = np.arange(7, dtype=np.float32)[None]
    names = ("counted", "correct", "correct_top5")
    assert count(logits, one_hot, np.ones(1)) == dict(zip(names, expected, strict=True))
    assert set(count(logits, one_hot, np.zeros(1)).values()) == {0}


def test_up_to_five_classes_have_no_top_5():
    assert set(count(np.ones((2, 5)), np.ones((2, 5)), np.ones(2))) == {"counted", "correct"}


def test_equal_logits_give_the_first_class():
    """As argmax does: an untrained head counts the same in top-1 however it is computed."""
    labels = np.eye(8, dtype=np.float32)
    assert count(np.zeros((8, 8)), labels, np.ones(8)) == {
        "counted": 8,
        "correct": 1,
        "correct_top5": 5,
    }


def test_whatever_stands_in_the_padding_does_not_count():
    logits = np.stack([np.arange(7.0), np.full(7, np.nan)]).astype(np.float32)
    labels = np.eye(7, dtype=np.float32)[[6, 6]]
    assert count(logits, labels, np.array([1.0, 0.0])) == {
        "counted": 1,
        "correct": 1,
        "correct_top5": 1,
    }

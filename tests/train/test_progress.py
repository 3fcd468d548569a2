"""What a run shows, on a terminal and in a log file; utilisation; the profiler."""

import io
import os
import pty
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from processes import read_terminal
from rich.console import Console

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.evaluate import flops
from vit_jax.families import sizes
from vit_jax.train import clock as clock_lib
from vit_jax.train import log, metrics, progress
from vit_jax.train.actions import Step, profiling
from vit_jax.train.actions.profiling import Profiler
from vit_jax.train.log import RunLog, device_memory
from vit_jax.train.progress import RunProgress
from vit_jax.train.state import TrainState

FIGURES = {"loss": 0.5, "speed": 1234.4, "utilisation": 0.423, "memory": (3 * 2**30, 80 * 2**30)}


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def plain(first_step=0, total=100):
    return RunProgress(total, first_step, Console(file=io.StringIO(), width=60))


def lines(shown):
    return shown._console.file.getvalue().splitlines()


# --- plain lines ---------------------------------------------------------------------------------


def test_a_line_holds_every_figure_that_is_known(clock):
    with plain() as shown:
        shown.start(1)
        shown.update(1, **FIGURES)
        clock.now += 60
        shown.update(21, loss=0.25)
        shown.evaluated(21, "test", {"accuracy_test": 0.5, "loss_test": 0.75})
    assert lines(shown) == [
        "step 1/100  loss 0.5000  images/s 1,234  MFU 42.3%  memory 3.0/80.0 GiB",
        # 20 steps in 60 seconds, 79 to go; one line, however narrow the terminal would be
        "step 21/100  loss 0.2500  images/s 1,234  MFU 42.3%  memory 3.0/80.0 GiB  ETA 0:03:57",
        "step 21/100  test:  loss 0.7500  top-1 50.00%",
    ]


def test_the_first_line_has_an_estimate(clock):
    with plain() as shown:
        shown.start(1)
        clock.now += 18
        shown.update(10, loss=1.0)
    assert lines(shown) == ["step 10/100  loss 1.0000  ETA 0:03:00"]


def test_lines_are_rare_but_for_evaluations(clock):
    with plain() as shown:
        for step in range(1, 101):
            shown.update(step, loss=1.0)
            if step in (5, 100):
                shown.evaluated(step, "test", {"accuracy_test": 0.5, "loss_test": 1.0})
            clock.now += 1
    at = [int(re.match(r"step (\d+)/100", line)[1]) for line in lines(shown)]
    assert at == [1, 5, *range(11, 100, 10), 100, 100]
    assert lines(shown)[-2].endswith("ETA 0:00:00")
    assert [line for line in lines(shown) if "test:" in line] == [
        f"step {step}/100  test:  loss 1.0000  top-1 50.00%" for step in (5, 100)
    ]


def test_a_resumed_run_estimates_from_its_own_steps(clock):
    with plain(first_step=80) as shown:
        shown.start(81)
        clock.now += 50
        shown.update(86, loss=1.0)
    assert lines(shown)[-1].endswith("ETA 0:02:20")


# --- a terminal ----------------------------------------------------------------------------------

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_an_error_or_interrupt_leaves_the_bar_and_gives_the_cursor_back():
    for error in (KeyboardInterrupt, UserError):
        console = Console(file=io.StringIO(), force_terminal=True, width=160)

        def run(console=console, error=error):
            with RunProgress(10, 0, console) as shown:
                shown.update(3, **FIGURES)
                raise error

        with pytest.raises(error):
            run()
        text = console.file.getvalue()
        assert text.rindex(SHOW) > text.rindex(HIDE)
        last = re.sub(r"\x1b\[[0-9;?]*\w", "", text).split("\r")[-1]
        assert "3/10" in last
        assert "loss 0.5000  images/s 1,234  MFU 42.3%  memory 3.0/80.0 GiB" in last
        assert last.endswith("\n")


def test_ctrl_c_on_a_real_terminal():
    code = (
        "import time; from vit_jax import cli; from vit_jax.train.progress import RunProgress\n"
        "def run():\n"
        "  with RunProgress(10, 0) as shown:\n"
        "    shown.update(3, loss=0.5); print('ready', flush=True); time.sleep(60)\n"
        "raise SystemExit(cli.guarded(run))"
    )
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(master, 4096)
    process.send_signal(signal.SIGINT)
    seen += read_terminal(master)
    assert process.wait() == 130
    text = seen.decode()
    assert text.rindex(SHOW) > text.rindex(HIDE)
    rest = re.sub(r"\x1b\[[0-9;?]*\w", "", text).replace("\r", "")
    assert rest.endswith("\nvit-jax: interrupted\n")
    assert "Traceback" not in rest


# --- the run's log -------------------------------------------------------------------------------


def test_the_log_shows_utilisation_and_memory_where_the_device_tells(tmp_path, monkeypatch, capsys):
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak, "bytes_limit": 2**36, "bytes_in_use": 5}

    monkeypatch.setattr(log.jax, "local_devices", lambda: [Device(2**30), Device(2**31)])
    with RunLog(tmp_path, 0, 10, image_flops=1e12) as run:
        run.train(1, loss=0.5, lr=0.1, speed=2 * 494.7, devices=2)
    assert "images/s 989  MFU 50.0%  memory 2.0/64.0 GiB" in capsys.readouterr().out
    (line,) = metrics.read(tmp_path)
    assert line["mfu"] == pytest.approx(0.5)
    assert line["peak_memory_gib"] == 2.0


def test_the_log_adds_up_over_restarts_and_leaves_out_what_is_not_finite(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    for first in (0, 2):
        with RunLog(tmp_path, first, 10) as run:
            run.saved(0.25)
            run.saved(0.5)
            for step in (first + 1, first + 2, first + 3):
                now += 900.0
                run.train(step, loss=float("nan"), lr=0.1, speed=8.0, devices=4)
    lines = metrics.read(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]  # the first third step is repeated
    assert [line["device_hours"] for line in lines] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [line.get("save_seconds") for line in lines] == [0.75, None, 0.75, None, None]
    assert not any("train_loss" in line for line in lines)


def test_the_clock_tells_training_from_waiting_and_pauses(monkeypatch):
    now = 50.0
    monkeypatch.setattr(clock_lib.time, "monotonic", lambda: now)
    clock = clock_lib.Clock()
    now += 100.0  # compilation
    clock.restart(1)
    now += 3.0
    with clock.waiting():
        now += 1.0
    with clock.paused(clock_lib.SAVING) as span:
        now += 60.0
    assert span.seconds == 60.0
    assert clock.pace(3) == clock_lib.Pace(step_seconds=2.0, data_wait_seconds=0.5, steps=2)
    now += 5.0
    assert clock.pace(8) == clock_lib.Pace(step_seconds=1.0, data_wait_seconds=0.0, steps=5)
    assert clock.seconds == 169.0


def test_the_log_of_an_unknown_device_shows_neither(tmp_path, capsys):
    with RunLog(tmp_path, 0, 10, image_flops=1e12) as run:
        run.train(1, loss=0.5, lr=0.1, speed=100.0, devices=1)
        run.evaluation(1, "test", {"accuracy_test": 0.25, "loss_test": 2.0, "examples_test": 4})
    out = capsys.readouterr().out
    assert "step 1/10  loss 0.5000  images/s 100\nstep 1/10  test:  loss 2.0000" in out
    assert "MFU" not in out
    assert "memory" not in out


@pytest.mark.parametrize("stats", [None, {}, {"bytes_in_use": 5}])
def test_memory_that_the_backend_does_not_tell(stats):
    class Device:
        def memory_stats(self):
            return stats

    assert device_memory(Device()) is None


# --- utilisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
    ],
)
def test_peaks(kind, tera):
    assert flops.peak_flops(kind) == tera * 1e12


@pytest.mark.parametrize("kind", ["cpu", "TPU v2", "NVIDIA GeForce RTX 4090", ""])
def test_devices_of_unknown_peak(kind):
    assert flops.peak_flops(kind) is None
    assert flops.utilisation(1e3, 1e9, kind, 1) is None


def test_training_flops_are_six_times_the_recorded_multiply_adds():
    name = "ViT-Ti_16"
    model = models.get_model(name)
    recorded = sizes.recorded()[name].macs
    size = 384 if recorded > 3e9 else 224
    assert flops.train_flops(model, size) == 6 * recorded
    scanned = models.get_model(name, transformer={"scan": True})
    assert flops.train_flops(scanned, size) == 6 * recorded
    assert flops.train_flops(model, size // 2) < 6 * recorded / 3


def test_a_model_that_cannot_be_counted_has_no_utilisation():
    class Loops:
        def init(self, key, x, train):
            return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x[0, :, :, 0])

    assert flops.train_flops(Loops(), 8) is None
    assert flops.utilisation(1e3, None, "NVIDIA H100", 1) is None


# --- the profiler --------------------------------------------------------------------------------


def dispatched(number, total, loss=0.0):
    state = TrainState(number, params={}, opt_state={})
    return Step(number, total, state, {"loss": jnp.asarray(loss)})


@pytest.fixture
def traced(tmp_path, monkeypatch):
    """Runs steps under the profiler; between which steps it traced."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda to: calls.append(("start", to)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))

    def run(steps, first_step=0, total=8, fail_at=None):
        with Profiler(tmp_path, steps) as profiler:
            for step in range(first_step + 1, total + 1):
                profiler.before(step)
                calls.append(step)
                if step == fail_at:
                    raise UserError("nan")
                profiler.after(dispatched(step, total))
        return calls

    run.calls, run.start = calls, ("start", str(tmp_path))
    return run


def test_the_profiler_traces_the_steps_it_is_told(traced):
    assert traced((3, 4), total=5) == [1, 2, traced.start, 3, 4, "stop", 5]


def test_the_profiler_of_one_step_and_of_none(traced):
    assert traced((2, 2), total=3) == [1, traced.start, 2, "stop", 3]
    traced.calls.clear()
    assert traced((), total=2) == traced.calls == [1, 2]


def test_the_profiler_in_a_resumed_run(traced):
    assert traced((3, 6), first_step=4, total=7) == [traced.start, 5, 6, "stop", 7]
    traced.calls.clear()
    assert traced((3, 6), first_step=6, total=7) == [7]


def test_the_profiler_ends_with_the_run(traced):
    assert traced((2, 9), total=3) == [1, traced.start, 2, 3, "stop"]
    traced.calls.clear()
    with pytest.raises(UserError, match="nan"):
        traced((1, 5), fail_at=2)
    assert traced.calls == [traced.start, 1, 2, "stop"]


def test_a_file_in_the_workdir_asks_for_a_trace(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "_EVERY", 0.0)
    (tmp_path / "profile").touch()
    assert traced((), total=7) == [traced.start, 1, 2, 3, 4, 5, "stop", 6, 7]
    assert not list(tmp_path.iterdir())
    traced.calls.clear()
    monkeypatch.setattr(profiling, "_EVERY", 1000.0)
    (tmp_path / "profile").touch()
    assert traced((), total=2) == [1, 2]


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1"])
def test_a_port_for_profiles_is_a_port(port):
    with pytest.raises(UserError, match="VIT_JAX_PROFILE_PORT"):
        profiling.profile_server(port)


@pytest.mark.parametrize("steps", [(1,), (3, 2), (0, 2), (1, 2, 3), (1.0, 2), ("1", "2")])
def test_the_profiler_refuses_other_ranges(tmp_path, steps):
    with pytest.raises(UserError, match=r"expected \(first_step, last_step\)"):
        Profiler(tmp_path, steps)


def test_a_real_trace_lies_where_tensorboard_looks(tmp_path):
    with Profiler(tmp_path, (1, 1)) as profiler:
        profiler.before(1)
        profiler.after(dispatched(1, 1, jax.jit(lambda x: x @ x)(jnp.ones((8, 8)))))
    assert list((tmp_path / "plugins" / "profile").glob("*/*.xplane.pb"))

"""A run whose data does not come: what ends it, and what it says."""

import os
import pathlib
import re
import signal
import time

import processes
import pytest
import tiny_run

from vit_jax.errors import Status

HEARTBEAT = 6


@pytest.fixture
def stuck(tmp_path):
    """Two processes of a run; on the disk of the second, an image becomes a pipe without an end."""
    started = []
    for number, place in enumerate(processes.together(2)):
        images = tiny_run.write_images(tmp_path / f"images{number}")
        flags = [f"--config={processes.TESTS}/tiny_run.py", f"--config.dataset={images}"]
        flags += [f"--workdir={tmp_path / 'run'}", f"--heartbeat_timeout={HEARTBEAT}"]
        flags += [f"--config.{name}=0" for name in ("eval_every", "checkpoint_every")]
        names = ("--coordinator", "--num_processes", "--process_id")
        flags += [f"{name}={value}" for name, value in zip(names, place, strict=True)]
        words = ["-m", "vit_jax.cli", "train", *flags, "--config.total_steps=100000"]
        started.append(processes.start(words))
    try:
        for line in started[0].stdout:
            if line.startswith("first step after"):
                break
        time.sleep(3)  # in which the run finds out how long a step takes
        replaced: pathlib.Path = images / "train" / "cat" / "0.png"
        replaced.unlink()
        os.mkfifo(replaced)
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


def test_a_read_that_never_ends_is_found_and_named_and_ends_all(stuck):
    for process in stuck:
        os.kill(process.pid, signal.SIGUSR1)  # writes the stacks, and the run goes on
    # Long before the 300 seconds of a run in which nobody waits for another process.
    (status, _, errors), (hung, _, found) = processes.finish(*stuck, limit=120)
    assert hung == Status.HUNG
    *stacks, last = found.splitlines()
    what = r"process 1 on \S+ hangs after step \d+: waiting for data for \d+ s, and the others wait"
    assert re.match(f"vit-jax: error: {what}", last)
    # Once for the signal and once at the end; the thread that reads is among them.
    assert sum(line.startswith("Current thread") for line in stacks) == 2
    assert any("decode" in line or "read" in line for line in stacks)
    assert status == Status.LOST_PEER
    last = errors.splitlines()[-1]
    assert re.match(rf"vit-jax: error: process 1 on \S+ has ended: {what}", last)

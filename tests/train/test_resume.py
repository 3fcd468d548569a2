"""Runs that are killed, told to stop, or given another config, and go on."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import time

import processes
import pytest
import tiny_run

from vit_jax import train
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.train.run_lock import run_lock
from vit_jax.train.same_config import require_same_classes, require_same_config

MANY_KILLS = 20  # so many that some of them come while a checkpoint is saved
STEPS = 30


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    return tiny_run.write_images(tmp_path_factory.mktemp("data") / "images")


def command(images, workdir, *more: str) -> list[str]:
    flags = [f"--config={processes.TESTS}/tiny_run.py", f"--config.dataset={images}"]
    flags += [f"--config.total_steps={STEPS}", f"--workdir={workdir}"]
    return ["-m", "vit_jax.main", *flags, *more]


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    processes.succeed(processes.start(command(images, workdir)))
    return workdir


def assert_same(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    got, want = tiny_run.lines(workdir), tiny_run.lines(reference)
    assert got == want
    assert tiny_run.stored(workdir) == tiny_run.stored(reference)
    assert not list(workdir.glob("*tmp*"))


def wait_for_lines(workdir: pathlib.Path, process: subprocess.Popen, more: int = 1) -> None:
    """Until this process has written `more` lines of metrics; returns too when it ends."""
    path, size, seen = workdir / "metrics.jsonl", None, 0
    limit = time.monotonic() + processes.LIMIT
    while process.poll() is None and time.monotonic() < limit:
        now = path.stat().st_size if path.exists() else 0
        # Going on cuts the file back before it grows.
        seen += size is not None and now > size
        size = now
        if seen >= more:
            return
        time.sleep(0.002)


@pytest.mark.parametrize("wanted", [6, pytest.param(MANY_KILLS, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_is_the_uninterrupted_run(
    wanted, images, uninterrupted, tmp_path
):
    """SIGKILL in steps, saves and evaluations; a run that gets through makes way for another."""
    rng, kills, in_saves, workdir = random.Random(0), 0, 0, tmp_path / "0"
    while True:
        process = processes.start(command(images, workdir))
        if kills < wanted:
            wait_for_lines(workdir, process)
            time.sleep(rng.uniform(0, 0.3))
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
        ((status, _, errors),) = processes.finish(process)
        if status == -signal.SIGKILL:
            kills += 1
            in_saves += bool(list(workdir.glob("*tmp*")))
            continue
        assert status == 0, errors[-3000:]
        assert_same(workdir, uninterrupted)
        if kills == wanted:
            break
        workdir = tmp_path / str(kills)
    assert in_saves or wanted < MANY_KILLS


def test_the_same_command_twice_at_once_is_one_run(images, uninterrupted, tmp_path):
    pair = [processes.start(command(images, tmp_path)) for _ in range(2)]
    results = dict(zip(("0", "1"), processes.finish(*pair), strict=True))
    (refused,) = [name for name, (status, _, _) in results.items() if status == 2]
    (other,) = {"0", "1"} - {refused}
    assert results[other][0] == 0, results[other][2][-3000:]
    assert f"is in use by the run of process {pair[int(other)].pid} on" in results[refused][2]
    assert "Traceback" not in results[refused][2]
    assert_same(tmp_path, uninterrupted)


def test_sigterm_saves_and_the_run_goes_on(images, uninterrupted, tmp_path):
    process = processes.start(command(images, tmp_path, "--config.data.num_workers=1"))
    wait_for_lines(tmp_path, process, more=3)
    os.killpg(process.pid, signal.SIGTERM)  # as clusters do, to the data's worker too
    ((status, _, errors),) = processes.finish(process)
    (latest,) = {max(tiny_run.stored(tmp_path)), tiny_run.lines(tmp_path)[-1]["step"]}
    assert status == 143
    assert latest < STEPS
    assert errors.startswith(
        f"vit_jax.main: stopped by SIGTERM after step {latest}, which is saved"
    )
    processes.succeed(processes.start(command(images, tmp_path)))
    assert_same(tmp_path, uninterrupted)


def test_a_full_disk_is_one_line_and_the_run_goes_on(images, uninterrupted, tmp_path):
    limited = (
        "import resource, sys; from vit_jax import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2)\n"  # of a file, in bytes
        "sys.exit(main.main())"
    )
    flags = command(images, tmp_path)[2:]
    ((status, _, errors),) = processes.finish(processes.start(["-c", limited, *flags]))
    assert status == 2
    assert errors.startswith(f"vit_jax.main: error: cannot write a checkpoint to {tmp_path}: File")
    assert "Traceback" not in errors
    assert "No checkpoint was written before" in errors
    assert "the same command starts from the beginning" in errors
    assert not tiny_run.stored(tmp_path)
    processes.succeed(processes.start(command(images, tmp_path)))
    assert_same(tmp_path, uninterrupted)


def start_two(images, workdir) -> list[subprocess.Popen]:
    names = ("--coordinator", "--num_processes", "--process_id")
    return [
        processes.start(
            command(images, workdir, *(f"{n}={v}" for n, v in zip(names, values, strict=True)))
        )
        for values in processes.together(2)
    ]


def test_sigterm_to_one_of_two_processes_stops_both(images, tmp_path):
    reference, workdir = tmp_path / "reference", tmp_path / "run"
    processes.succeed(*start_two(images, reference))

    pair = start_two(images, workdir)
    wait_for_lines(workdir, pair[0], more=3)
    pair[1].send_signal(signal.SIGTERM)
    results = processes.finish(*pair)
    (latest,) = {max(tiny_run.stored(workdir)), tiny_run.lines(workdir)[-1]["step"]}
    assert latest < STEPS
    for status, _, errors in results:
        assert status == 143, errors[-3000:]
        assert f"stopped by SIGTERM after step {latest}, which is saved" in errors

    with run_lock(workdir):  # one process is refused, and all stop
        for status, _, errors in processes.finish(*start_two(images, workdir)):
            assert status == 2, errors[-3000:]
            assert f"--workdir={workdir}" in errors

    processes.succeed(*start_two(images, workdir))
    assert_same(workdir, reference)


# --- another config ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(images, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("begun")
    train.train_and_evaluate(tiny_run.config(images, total_steps=5), workdir)
    return workdir


def test_another_config_is_listed_and_refused(images, begun):
    other = tiny_run.config(images, total_steps=5, base_lr=0.5, optim="adamw", batch=16, seed=1)
    before = (begun / "run.json").read_bytes()
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(other, begun)
    message = str(error.value)
    for part in (
        "base_lr was 0.01, is 0.5",
        "optim was 'sgd', is 'adamw'",
        "batch was 8, is 16",
        "seed was 0, is 1",
        "--allow_other_config",
    ):
        assert part in message
    assert message.count(" was ") == 4
    assert (begun / "run.json").read_bytes() == before


def test_fields_that_enter_no_update_may_change(images, begun):
    require_same_config(
        common.with_defaults(
            tiny_run.config(
                images,
                total_steps=5,
                mesh__fsdp=2,
                data__num_workers=1,
                prefetch=1,
                progress_every=3,
                checkpoint_every=2,
                keep_checkpoints=0,
                batch_eval=8,
            )
        ),
        begun,
    )


def test_other_classes_are_refused(begun):
    require_same_classes(["cat", "dog"], begun)
    for names in (["cat", "hound"], ["dog", "cat"], ["ant", "cat", "dog"]):
        with pytest.raises(UserError, match="a run with the classes cat, dog; the dataset now has"):
            require_same_classes(names, begun)


def test_another_config_goes_on_when_told(images, begun, tmp_path):
    import shutil

    shutil.copytree(begun, tmp_path / "run")
    longer = tiny_run.config(images, total_steps=8)
    train.train_and_evaluate(longer, tmp_path / "run", allow_other_config=True)
    assert [line["step"] for line in tiny_run.lines(tmp_path / "run")][-1] == 8
    # The run is now that of the other config.
    require_same_config(common.with_defaults(longer), tmp_path / "run")


def test_a_workdir_without_a_checkpoint_takes_any_config(images, begun, tmp_path):
    (tmp_path / "run.json").write_bytes((begun / "run.json").read_bytes())
    train.train_and_evaluate(tiny_run.config(images, total_steps=5, seed=7, eval_every=0), tmp_path)

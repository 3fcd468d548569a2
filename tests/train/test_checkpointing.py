"""What is kept, what is refused, and what a failed write leaves behind."""

import contextlib
import dataclasses
import json
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import processes
import pytest
import tiny_run
from jax.experimental import multihost_utils

from vit_jax.configs import common
from vit_jax.devices import sharding
from vit_jax.devices.sharding import make_mesh
from vit_jax.errors import UserError
from vit_jax.train import checkpointing
from vit_jax.train import engine as engine_lib
from vit_jax.train.checkpointing import Checkpoints, load_params
from vit_jax.train.state import TrainState


def state_of(step: int, dtype=jnp.float32, size: int = 8) -> TrainState:
    params = {"head": {"kernel": jax.random.normal(jax.random.key(step), (size,), dtype)}}
    return TrainState(jnp.asarray(step), params, {"mu": jax.tree.map(lambda x: 2 * x, params)})


def saved(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint_")) for path in workdir.iterdir())


def save_all(workdir, figures: list[dict | None], keep: int, keep_best: str | None = None):
    with Checkpoints(workdir, keep, keep_best) as checkpoints:
        for step, of_step in enumerate(figures, start=1):
            checkpoints.save(state_of(step), of_step)
        checkpoints.wait()
        return checkpoints.best_step


def accuracies(*values: float | None) -> list[dict | None]:
    return [None if v is None else {"accuracy_test": v, "loss_test": 1 - v} for v in values]


@pytest.mark.parametrize(
    ("keep", "keep_best", "values", "expected", "best"),
    [
        (0, None, (0.1, 0.2, 0.3), [1, 2, 3], None),
        (2, None, (0.9, 0.2, 0.3, 0.1), [3, 4], None),
        (2, "accuracy_test", (0.1, 0.9, 0.3, 0.2, 0.1), [2, 4, 5], 2),
        (2, "loss_test", (0.1, 0.9, 0.3, 0.2, 0.1), [2, 4, 5], 2),
        (1, "accuracy_test", (0.1, 0.2, None, 0.3, None), [4, 5], 4),
        (1, "accuracy_test", (0.3, 0.3, None), [2, 3], 2),  # of equals, the newest
        (1, "accuracy_test", (None, None), [2], None),
    ],
    ids=str,
)
def test_the_newest_and_the_best_stay(tmp_path, keep, keep_best, values, expected, best):
    assert save_all(tmp_path, accuracies(*values), keep, keep_best) == best
    assert saved(tmp_path) == expected


def test_saving_does_not_ask_whether_the_run_is_to_stop(tmp_path, monkeypatch):
    """JAX knows one count of such questions, which is the run's own, see `Preemption`."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    save_all(tmp_path, accuracies(0.1, 0.2), 1)
    assert asked == []
    with ocp.CheckpointManager(tmp_path / "plain") as manager:  # which is why it is seen to
        manager.save(1, args=ocp.args.StandardSave({"x": np.zeros(2)}))
    assert asked


def test_the_best_of_an_earlier_process_stays(tmp_path):
    save_all(tmp_path, accuracies(0.9, 0.1), 1, "accuracy_test")
    with Checkpoints(tmp_path, 1, "accuracy_test") as checkpoints:
        for step in (3, 4):
            checkpoints.save(state_of(step), {"accuracy_test": 0.5})
        assert checkpoints.best_step == 1
    assert saved(tmp_path) == [1, 4]


def test_figures_of_another_evaluation_are_not_compared(tmp_path):
    figures = [{"val/accuracy": 0.4, "loss_test": 1.0}, {"loss_test": 0.5}, {"val/accuracy": 0.3}]
    save_all(tmp_path, figures, 1, "val/accuracy")
    assert saved(tmp_path) == [1, 3]


def test_another_figure_may_count_from_now_on(tmp_path):
    save_all(tmp_path, accuracies(0.9, 0.1), 2, "accuracy_test")
    with Checkpoints(tmp_path, 1, "val/accuracy") as checkpoints:
        for step, figures in ((3, {"val/accuracy": 0.1}), (4, None)):
            checkpoints.save(state_of(step), figures)
        assert checkpoints.best_step == 3
    assert saved(tmp_path) == [3, 4]


def test_figures_that_come_later_count(tmp_path):
    """Those of an evaluation that a stopped run left to the run that goes on."""
    later = {"accuracy_test": 0.9, "loss_test": 0.1}
    save_all(tmp_path, accuracies(0.5, None), 1, "accuracy_test")
    with Checkpoints(tmp_path, 1, "accuracy_test") as checkpoints:
        checkpoints.add_figures({"loss_test": 0.1})  # of another evaluation
        checkpoints.add_figures(later)
        checkpoints.add_figures(later | {"accuracy_test": 0.0})  # what is known stays
        assert checkpoints.best_step == 2
        for step in (3, 4):
            checkpoints.save(state_of(step), {"accuracy_test": 0.7})
    assert saved(tmp_path) == [2, 4]


def test_the_history_is_that_of_the_newest_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.history() == {}
        for step, losses in ((1, []), (2, [0.1, 1 / 3])):
            checkpoints.save(state_of(step), history={"losses": losses})
        checkpoints.wait()
        assert checkpoints.history() == {"losses": [0.1, 1 / 3]}
    # A checkpoint from before there were histories.
    shutil.rmtree(tmp_path / "checkpoint_2" / "history")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.history() == {}
        assert int(checkpoints.restore(like=state_of(0)).step) == 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_another_type_on_disk_is_not_cast_in_silence(tmp_path, dtype):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1, dtype))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(like=state_of(0))
    assert f"head/kernel on disk {np.dtype(dtype).name}[8]" in str(error.value)
    assert "head/kernel expected float32[8]" in str(error.value)
    assert load_params(tmp_path)["head"]["kernel"].dtype == dtype


def test_what_was_being_written_is_not_seen(tmp_path):
    save_all(tmp_path, accuracies(0.1, 0.2), 0)
    (tmp_path / "checkpoint_2").rename(tmp_path / "checkpoint_2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(like=state_of(0)).step) == 1
        checkpoints.save(state_of(2))
    assert saved(tmp_path) == [1, 2]


@contextlib.contextmanager
def no_file_larger_than(size: int):
    """Writing fails beyond it: a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail_to_save(workdir: pathlib.Path, state: TrainState, limit: int, then: str) -> None:
    with no_file_larger_than(limit), Checkpoints(workdir) as checkpoints:
        checkpoints.save(state)
        if then == "wait":
            checkpoints.wait()
        elif then == "save":
            checkpoints.save(dataclasses.replace(state, step=state.step + 1))


@pytest.mark.parametrize("then", ["wait", "save", "leave"])
def test_a_failed_write_is_one_error_and_leaves_the_earlier_one(tmp_path, capfd, then):
    size = 100_000
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1, size=size))
    with pytest.raises(UserError) as error:
        fail_to_save(tmp_path, state_of(2, size=size), 10_000, then)
    message = str(error.value)
    assert message.startswith(f"cannot write a checkpoint to {tmp_path}: File too large. ")
    assert "That of step 1 is intact" in message
    assert "Traceback" not in capfd.readouterr().err
    got, want = load_params(tmp_path), state_of(1, size=size).params
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_four_devices_write_and_one_two_and_eight_restore(tmp_path):
    # Wide enough for its tensors to be split: a small one would lie whole on every device.
    changes = {"optim": "adamw", "model__hidden_size": 64, "batch_eval": 8}
    changes |= {"mesh__data": 1, "mesh__fsdp": -1}
    config = common.with_defaults(tiny_run.config("", **changes))
    engine = engine_lib.build(config, make_mesh(config.mesh), num_classes=2)
    state = dataclasses.replace(engine.init(jax.random.key(5)), step=jnp.asarray(7, jnp.int32))
    kernel = state.params["embedding"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[-1] == 64 // 4
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(state)
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    expected = {jax.tree_util.keystr(name): tiny_run.describe(value) for name, value in leaves}

    def restore(devices: int):
        job = {"do": "restore", "workdir": str(tmp_path / "run")}
        job |= {"out": str(tmp_path / f"{devices}.json"), "config": {"images": ""} | changes}
        tiny_run.write_json(tmp_path / f"jobs_{devices}.json", [job])
        worker = processes.TESTS / "run_worker.py"
        return processes.start([worker, tmp_path / f"jobs_{devices}.json"], devices)

    processes.succeed(*(restore(devices) for devices in (1, 2, 8)))
    for devices in (1, 2, 8):
        found = json.loads((tmp_path / f"{devices}.json").read_text())
        assert found == expected | {"devices": devices}


def test_copies_of_small_arrays_are_not_cut_for_writing(tmp_path, monkeypatch):
    """Each cut is a program of its own to compile, for every shape and device."""
    cuts, cut = [], jax.lax.slice_in_dim  # what Orbax cuts with
    monkeypatch.setattr(jax.lax, "slice_in_dim", lambda *a, **k: cuts.append(a) or cut(*a, **k))
    mesh = make_mesh({"data": 4, "fsdp": 1, "model": 1})
    state = jax.device_put(state_of(1), sharding.replicated(mesh))
    for least, expected in ((checkpointing._LARGE, 0), (0, 2 * 4)):
        monkeypatch.setattr(checkpointing, "_LARGE", least)
        with Checkpoints(tmp_path / str(least)) as checkpoints:
            checkpoints.save(state)
        assert len(cuts) == expected

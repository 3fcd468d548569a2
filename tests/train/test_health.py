"""Ruined updates, spikes and rollbacks; what a run that was stopped makes up for."""

import contextlib
import dataclasses
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import poison
import processes
import pytest
import tiny_run
from flax import linen as nn

from vit_jax import train
from vit_jax.errors import Diverged, Preempted, UserError
from vit_jax.train import engine as engine_lib
from vit_jax.train import loop, metrics
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.health import History, Policy, RollBack
from vit_jax.train.norms import block_norms
from vit_jax.train.state import TrainState
from vit_jax.train.step import make_train_step

NAN = math.nan

# --- what is decided -----------------------------------------------------------------------------


def policy(**changes) -> Policy:
    fields = {"on_nonfinite": "stop", "max_skips": 3, "max_rollbacks": 2, "factor": 2.0}
    return Policy(**fields | {"window": 3} | changes)


def judged(rules: Policy, losses: list[float], history: History | None = None) -> History:
    """The history after the steps 1, 2, …; a loss that is not finite stands for a ruined update."""
    history = history or History()
    for step, loss in enumerate(losses, start=1):
        rules.judge(history, step, loss, math.isfinite(loss))
    return history


@pytest.mark.parametrize(
    ("changes", "losses", "ends", "at"),
    [
        ({}, [1, 1, 1, 2], None, None),  # twice the median is no spike
        ({}, [1, 1, 1, 2.01], RollBack, 4),
        ({}, [1, 1, 9], None, None),  # the window is not full
        ({}, [1, 9, 1, 2.01], RollBack, 4),  # the median does not see the 9
        ({"factor": 0.0}, [1, 1, 1, 1e9], None, None),
        ({}, [1, NAN], Diverged, 2),
        ({"on_nonfinite": "rollback"}, [1, NAN], RollBack, 2),
        ({"on_nonfinite": "rollback", "factor": 0.0}, [NAN], RollBack, 1),
        ({"on_nonfinite": "skip"}, [1, NAN, NAN, 1, NAN, NAN], None, None),
        ({"on_nonfinite": "skip"}, [1, NAN, NAN, NAN], Diverged, 4),
        ({"on_nonfinite": "skip"}, [1, 1, NAN, 1, NAN, 2.01], RollBack, 6),  # skips are no losses
    ],
    ids=str,
)
def test_what_ends_a_run_and_what_turns_it_back(changes, losses, ends, at):
    if ends is None:
        history = judged(policy(**changes), losses)
        assert history.skipped == sum(map(math.isnan, losses))
        return
    with pytest.raises(ends, match=f"of step {at} is"):
        judged(policy(**changes), losses)


def test_the_batches_up_to_the_bad_step_are_left_out_each_time():
    rules, stored = policy(), History(skipped=1, losses=[1.0, 2.0], offset=3)
    once = rules.go_back(dataclasses.replace(stored, skipped=4), stored, 10, RollBack(14, NAN, ""))
    # Step 14 trained on batch 13 + 3. Step 11 now trains on the next one.
    assert once.offset == 7
    assert 11 - 1 + once.offset == 17
    entry = {"step": 14, "loss": None, "to": 10, "first": 13, "last": 16}
    assert once == History(skipped=1, losses=[1.0, 2.0], offset=7, rollbacks=[entry])
    twice = rules.go_back(once, stored, 10, RollBack(11, 5.0, ""))
    assert twice.offset == 8
    assert twice.rollbacks[1] == {"step": 11, "loss": 5.0, "to": 10, "first": 17, "last": 17}
    with pytest.raises(Diverged, match="after 2 rollbacks to step 10"):
        rules.go_back(twice, stored, 10, RollBack(12, NAN, "the loss"))
    assert rules.go_back(twice, stored, 20, RollBack(22, NAN, "")).offset == 10


def test_an_unknown_policy(tmp_path):
    with pytest.raises(UserError, match="on_nonfinite='ignore'; expected one of stop, skip"):
        train.train_and_evaluate(tiny_run.config("x", on_nonfinite="ignore"), tmp_path)


# --- what the step computes ----------------------------------------------------------------------


class Blocks(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.ones, (2, 1)).prod()


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Blocks(name="encoderblock")(x)


class Tiny(nn.Module):
    """Two stacked blocks of one number each, and a head."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(2, name="head")(Transformer(name="Transformer")(x))


def test_the_norms_of_a_step_and_a_step_that_is_skipped():
    model, rate = Tiny(), optax.linear_schedule(1.0, 0.0, 10)
    tx = optax.chain(
        optax.clip_by_global_norm(1e-3),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(rate),
    )
    labels = jnp.asarray(np.eye(2, dtype=np.float32)[[0, 1, 0, 1]])
    batch = {"image": jnp.linspace(0.0, 1.0, 8).reshape(4, 2), "label": labels}
    params = model.init(jax.random.key(0), batch["image"], train=False)["params"]
    step = jax.jit(make_train_step(model, tx, skip=True, by_block=True))
    before = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
    after, scalars = step(before, batch, jax.random.key(0))
    assert bool(scalars["finite"])
    change = jax.tree.map(jnp.subtract, after.params, params)
    np.testing.assert_allclose(scalars["update_norm"], optax.tree.norm(change), rtol=1e-5)
    np.testing.assert_allclose(scalars["param_norm"], optax.tree.norm(after.params), rtol=1e-6)
    assert scalars["grad_norm"] > 1e-2  # before the clipping
    for name in ("grad_norm", "update_norm", "param_norm"):
        parts = {k: float(x) for k, x in scalars.items() if k.startswith(f"{name}/")}
        blocks = ("Transformer/encoderblock_0", "Transformer/encoderblock_1", "head")
        assert list(parts) == [f"{name}/{block}" for block in blocks]
        np.testing.assert_allclose(math.hypot(*parts.values()), scalars[name], rtol=1e-5)

    ruined, scalars = step(after, batch | {"label": batch["label"] * NAN}, jax.random.key(0))
    assert not bool(scalars["finite"])
    assert int(ruined.step) == 2
    counts = [int(x) for x in jax.tree.leaves(ruined.opt_state) if x.dtype == jnp.int32]
    assert counts == [1, 2]  # Adam has seen one gradient; the learning rate is that of step 2
    for name in ("mu", "nu"):
        kept, before = (optax.tree.get(x.opt_state, name) for x in (ruined, after))
        jax.tree.map(np.testing.assert_array_equal, kept, before)
    jax.tree.map(np.testing.assert_array_equal, ruined.params, after.params)


def test_the_blocks_of_names():
    tree = {
        "cls": jnp.full((1, 2), 3.0),
        "embedding": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)},
        "Transformer": {
            "encoderblock_0": {"MlpBlock_1": {"Dense_0": {"kernel": jnp.full((4,), 2.0)}}},
            "encoder_norm": {"scale": jnp.ones(9)},
        },
        "stage_1": {"encoderblock": {"scale": jnp.asarray([[3.0, 4.0], [0.0, 1.0]])}},
    }
    got = {name: float(norm) for name, norm in block_norms(tree).items()}
    assert got == {
        "cls": pytest.approx(math.sqrt(18)),
        "embedding": 2.0,
        "Transformer/encoderblock_0": 4.0,
        "Transformer/encoder_norm": 3.0,
        "stage_1/encoderblock_0": 5.0,
        "stage_1/encoderblock_1": 1.0,
    }


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_run.write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module", autouse=True)
def one_program():
    """Runs of the same program share what is compiled."""
    build, built = engine_lib.build, {}

    def cached(config, mesh, *more):
        key = config.on_nonfinite == "skip", config.log_norms_every > 0
        if key not in built:
            built[key] = build(config, mesh, *more)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.engine_lib, "build", cached)
        yield


def config(images, **changes):
    fixed = {"total_steps": 20, "eval_every": 5, "spike": {"window": 4, "factor": 0.0}}
    return tiny_run.config(images, **fixed | changes)


def history(workdir) -> History:
    with Checkpoints(workdir) as checkpoints:
        return History.of(checkpoints.history())


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train.train_and_evaluate(config(images), workdir)
    return workdir


class Killed(BaseException):
    """As if by SIGKILL."""


@contextlib.contextmanager
def killed_at(step):
    """Kills the run the first time that it reports `step`."""
    write = metrics.MetricWriter.write

    def dying(self, at, scalars):
        write(self, at, scalars)
        if at == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.MetricWriter, "write", dying)
        with contextlib.suppress(Killed):
            yield
            pytest.fail(f"the run did not report step {step}")


def assert_same(workdir, reference):
    assert tiny_run.lines(workdir) == tiny_run.lines(reference)
    assert tiny_run.stored(workdir) == tiny_run.stored(reference)
    assert history(workdir) == history(reference)


def test_a_ruined_update_is_not_saved(images, tmp_path):
    """The loss of step 10 is finite, and its update is not: what is saved is what is looked at."""
    with poison.labels({9: 1e30}), pytest.raises(Diverged) as end:
        train.train_and_evaluate(config(images, progress_every=0), tmp_path)
    assert "the update of step 10 is not finite (its loss is " in str(end.value)
    assert "(its loss is nan" not in str(end.value)
    assert "The last good checkpoint is that of step 5." in str(end.value)
    assert list(tiny_run.stored(tmp_path)) == [5]
    assert [line["step"] for line in tiny_run.lines(tmp_path)] == [5]  # and it is not evaluated
    # The same command goes on from there, and without the batch it gets through.
    train.train_and_evaluate(config(images), tmp_path)
    assert max(tiny_run.stored(tmp_path)) == 20


def test_a_line_of_training_shows_a_runs_health(uninterrupted):
    lines = [line for line in metrics.read(uninterrupted) if "lr" in line]
    old = {"step", "train_loss", "lr", "img_sec_core_train"}
    new = {"grad_norm", "update_norm", "param_norm", "step_seconds", "data_wait_seconds"}
    for line in lines:
        assert old | new | {"images_seen", "device_hours"} <= set(line)
        assert line["images_seen"] == 8 * line["step"]
        assert 0 < line["data_wait_seconds"] < line["step_seconds"]
        assert (line["update_norm"] > 0) == (line["lr"] > 0)  # The warm-up begins at 0.
        assert line["update_norm"] < line["param_norm"]
        assert line["grad_norm"] > 0
        np.testing.assert_allclose(
            line["img_sec_core_train"], 8 / 4 / line["step_seconds"], rtol=1e-9
        )
    assert [line["step"] for line in lines if "save_seconds" in line] == [6, 11, 16]
    assert all("eval_seconds" in x for x in metrics.read(uninterrupted) if "loss_test" in x)


def test_skipped_updates_are_counted_also_by_a_run_that_goes_on(images, tmp_path):
    skipping = config(images, on_nonfinite="skip", max_skips=2, log_norms_every=8)
    with poison.labels({3: NAN, 11: NAN, 12: 1.0}) as met:
        train.train_and_evaluate(skipping, tmp_path / "whole")
        with killed_at(7):
            train.train_and_evaluate(skipping, tmp_path / "parts")
        train.train_and_evaluate(skipping, tmp_path / "parts")
    assert met[:20] == list(range(20))
    lines = [line for line in tiny_run.lines(tmp_path / "whole") if "lr" in line]
    assert [line["skipped_updates"] for line in lines] == [0] * 3 + [1] * 8 + [2] * 9
    assert [line["step"] for line in lines if "train_loss" not in line] == [4, 12]
    assert history(tmp_path / "whole").skipped == 2
    blocks = [x for x in tiny_run.lines(tmp_path / "whole") if "grad_norm/head" in x]
    assert [line["step"] for line in blocks] == [8, 16, 20]
    assert "param_norm/Transformer/encoderblock_0" in blocks[0]
    assert_same(tmp_path / "parts", tmp_path / "whole")
    with poison.labels({13: NAN, 14: NAN}), pytest.raises(Diverged) as end:
        train.train_and_evaluate(skipping, tmp_path / "ends")
    assert "of step 15 is not finite (its loss is nan), and it is the last of 2" in str(end.value)


def test_a_run_goes_back_and_on_past_the_batches(images, tmp_path, capsys):
    turning = config(
        images, on_nonfinite="rollback", spike={"window": 4, "factor": 3.0}, progress_every=2
    )
    # Batch 1 ruins the beginning, batch 12 is a spike, and batch 15 ruins what follows it.
    with poison.labels({1: NAN, 12: 100.0, 15: NAN}) as met:
        train.train_and_evaluate(turning, tmp_path / "whole")
        parts = tmp_path / "parts"
        for step in (8, 12):  # before the spike, and after it, when nothing is saved since
            with killed_at(step):
                train.train_and_evaluate(turning, parts)
        train.train_and_evaluate(turning, parts)
    out = capsys.readouterr().out
    assert "back to step 0, and on without the batches 0 to 1" in out
    assert "the loss of step 11 is " in out
    rollbacks = history(tmp_path / "whole").rollbacks
    assert [(r["step"], r["to"], r["first"], r["last"]) for r in rollbacks] == [
        (2, 0, 0, 1),
        (11, 10, 12, 12),
        (13, 10, 13, 15),
    ]
    assert rollbacks[1]["loss"] > 50
    assert history(tmp_path / "whole").offset == 6
    steps = [line["step"] for line in tiny_run.lines(tmp_path / "whole") if "lr" in line]
    assert steps == list(range(2, 21, 2))
    assert [line["rollbacks"] for line in tiny_run.lines(tmp_path / "whole") if "lr" in line] == [
        *[1] * 5,
        *[3] * 5,
    ]
    assert met.count(12) >= 2
    assert_same(parts, tmp_path / "whole")


# --- stopping ------------------------------------------------------------------------------------


@contextlib.contextmanager
def signal_after(step):
    """Sends SIGTERM when `step` is dispatched, and the run has already asked whether to stop."""
    report = loop.Reporting.after

    def reporting(self, done):
        if done.number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        report(self, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Reporting, "after", reporting)
        yield


@pytest.mark.parametrize(
    ("moment", "saved", "evaluated"),
    [
        (lambda: signal_after(4), 5, False),  # evaluation and save are due at step 5, too
        (lambda: poison.signal_in_evaluation(0), 5, False),
        (lambda: poison.signal_in_save(5), 6, True),
        (lambda: poison.signal_in_evaluation(3), 20, False),  # of the last step
    ],
    ids=["before", "in an evaluation", "in a save", "at the end"],
)
def test_a_run_that_is_stopped_saves_first_and_evaluates_later(
    images, uninterrupted, tmp_path, moment, saved, evaluated
):
    with moment(), pytest.raises(Preempted, match=f"after step {saved}, which is saved"):
        train.train_and_evaluate(config(images), tmp_path)
    assert max(tiny_run.stored(tmp_path)) == saved
    due = [line for line in tiny_run.lines(tmp_path) if line["step"] == saved - saved % 5]
    assert any("loss_test" in line for line in due) == evaluated
    train.train_and_evaluate(config(images), tmp_path)
    assert_same(tmp_path, uninterrupted)


def test_two_processes_turn_back_and_stop_alike(tmp_path):
    """One of them is told to stop, in an evaluation of more batches than are under way at once."""
    fields = {"images": str(tiny_run.write_images(tmp_path / "images", test=20)), "batch_eval": 2}
    fields |= {
        "batch_eval_device": 1,
        "total_steps": 12,
        "eval_every": 5,
        "on_nonfinite": "rollback",
    }
    worker = processes.TESTS / "run_worker.py"

    def run(**jobs: dict):
        common = {"do": "train", "config": fields, "poison": {"6": NAN}}
        file = tmp_path / "jobs.json"
        listed = [common | {"workdir": str(tmp_path / name)} | more for name, more in jobs.items()]
        tiny_run.write_json(file, listed)
        pair = (processes.start([worker, file, *place]) for place in processes.together(2))
        return [(status, errors) for status, _, errors in processes.finish(*pair)]

    for _, errors in run(whole={}, parts={"signal_in_evaluation": [1, 1]}):
        assert "Preempted: stopped by SIGTERM after step 10, which is saved" in errors
    evaluated = [line["step"] for line in tiny_run.lines(tmp_path / "parts") if "loss_test" in line]
    assert evaluated == [5]
    for status, errors in run(parts={}):
        assert status == 0, errors[-3000:]
    assert_same(tmp_path / "parts", tmp_path / "whole")
    (entry,) = history(tmp_path / "whole").rollbacks
    assert entry == {"step": 7, "loss": None, "to": 5, "first": 5, "last": 6}

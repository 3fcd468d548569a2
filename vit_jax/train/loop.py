"""The training loop."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from vit_jax import input_pipeline
from vit_jax.configs import common
from vit_jax.devices import peers
from vit_jax.devices.sharding import make_mesh, to_devices
from vit_jax.errors import UserError, some
from vit_jax.evaluate import flops
from vit_jax.evaluate.kinds import Setting
from vit_jax.train import branching, starts
from vit_jax.train import engine as engine_lib
from vit_jax.train import evaluations as evaluations_lib
from vit_jax.train.actions import Step
from vit_jax.train.actions.evaluating import Evaluating
from vit_jax.train.actions.health import Health
from vit_jax.train.actions.profiling import Profiler
from vit_jax.train.actions.reporting import Reporting
from vit_jax.train.actions.saving import Saving
from vit_jax.train.actions.stopping import Stopping
from vit_jax.train.actions.watchdog import Watchdog
from vit_jax.train.beginning import first_history, first_state
from vit_jax.train.cadence import saves
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.clock import Clock
from vit_jax.train.health import RollBack
from vit_jax.train.log import RunLog
from vit_jax.train.preemption import Preemption
from vit_jax.train.pretrained import find_all
from vit_jax.train.resolved import resolved
from vit_jax.train.same_config import require_same_classes, require_same_config
from vit_jax.train.state import TrainState
from vit_jax.train.teacher import load_teacher
from vit_jax.train.trackers import Trackers
from vit_jax.train.workdir import opened


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike, *, allow_other_config: bool = False
) -> Mapping[str, Any]:
    """Trains and evaluates a model, and continues from the newest checkpoint of `workdir`.

    Args:
      config: A config as `vit_jax.configs.common` documents it; missing fields take their defaults.
      workdir: The folder that receives `checkpoint_N`, `metrics.jsonl`, TensorBoard events and
        `run.json`; or its address, `gs://…` or `s3://…`.
      allow_other_config: Whether to continue a run whose config differs from `config`.

    Returns:
      The parameters at the end (their moving average if the run keeps one), on the devices. For a
      model with running statistics it is {'params': parameters, 'batch_stats': statistics}.

    Raises:
      UserError: for bad input or another run in `workdir`, before any long work.
      Diverged: if updates are not finite, or the loss rises, more often than the config allows.
      Preempted: after SIGTERM, once the state is saved.
    """
    clock = Clock()
    config = common.with_defaults(config)
    _require_set(config)
    mesh = make_mesh(config.mesh)
    engine_lib.check(config, mesh)
    branching.check(config, workdir)
    pretrained = {} if config.resume_from else find_all(config)
    with opened(workdir) as folder:
        return _train(config, mesh, folder, pretrained, clock, allow_other_config)


def _train(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    workdir: str | os.PathLike,
    pretrained: Mapping[str, os.PathLike],
    clock: Clock,
    allow_other_config: bool,
) -> Mapping[str, Any]:
    """`train_and_evaluate` after the checks of its arguments."""
    ds_train, ds_test = input_pipeline.get_datasets(
        config,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        compact=True,
    )
    config = resolved(config, ds_train.num_examples)
    teacher = load_teacher(config, ds_train.class_names)
    engine = engine_lib.build(config, mesh, ds_train.num_classes, teacher)
    hosts = jax.process_index(), jax.process_count()
    setting = Setting(config, engine, ds_train.class_names, *hosts)
    evaluations = evaluations_lib.of_run(setting, ds_test)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))

    keep = config.keep_checkpoints, config.keep_best, config.keep_every
    with Checkpoints(workdir, *keep) as checkpoints, Preemption() as preemption:
        if checkpoints.latest_step is not None and not allow_other_config:
            require_same_config(config, workdir)
            require_same_classes(ds_train.class_names, workdir)
        state = first_state(setting, init_key, checkpoints, pretrained)
        first = int(state.step)
        log = RunLog(workdir, first, config.total_steps, _image_flops(config, engine))
        if jax.process_index() == 0:
            info = starts.record(config, ds_train.class_names, workdir, step=first, mesh=mesh)
            log.track(Trackers(config.trackers, workdir, info.config, info.starts[-1]))
        log.say(f"training on {ds_train.summary}")
        for one in evaluations:
            log.say(f"evaluating {one.name} on {one.evaluator.summary}")
        health = Health(config, first_history(config, checkpoints), checkpoints, log)
        evaluating = Evaluating(evaluations, preemption.until_asked, log, clock, health)
        due = saves(config.checkpoint_every, config.keep_every, config.total_steps, first)
        actions = (
            health,
            Profiler(workdir, config.profile),
            Reporting(config, log, clock, health, engine.rate, mesh.size),
            evaluating,
            Saving(checkpoints, due, log, clock, health),
            Watchdog(config.watchdog, clock, preemption),
            Stopping(),
        )

        def train_on(state: TrainState) -> TrainState:
            """Trains until the end; raises RollBack when the run must go back before it goes on."""
            first = int(state.step)
            with (
                ds_train.iterate(first + health.history.offset) as stream,
                to_devices(stream, engine.batch, config.prefetch) as batches,
            ):
                clock.restart(first)
                for number in range(first + 1, config.total_steps + 1):
                    for action in actions:
                        action.before(number)
                    with clock.waiting():
                        batch = next(batches)
                    peers.begin_step()  # Dispatching may wait for the other processes.
                    with jax.profiler.StepTraceAnnotation("train", step_num=number):
                        state, scalars = engine.train_step(state, batch, train_key)
                    step = Step(number, config.total_steps, state, scalars, preemption.asked())
                    for action in actions:
                        action.after(step)
            return state

        with contextlib.ExitStack() as stack:
            for entered in (log, *actions):
                stack.enter_context(entered)
            evaluating.catch_up(first, config.total_steps, state, checkpoints)
            if first >= config.total_steps:
                log.say(_finished(workdir, first))
            while int(state.step) < config.total_steps:
                try:
                    state = train_on(state)
                    continue
                except RollBack as bad:
                    # The traceback would keep the bad state in memory beside the one that is read.
                    cause = bad.with_traceback(None)
                checkpoints.wait()
                state = first_state(setting, init_key, checkpoints, pretrained)
                log.go_back(int(state.step))
                health.go_back(first_history(config, checkpoints), int(state.step), cause)
    if damaged := [*ds_train.errors, *evaluations_lib.damaged(evaluations)]:
        logging.warning("%d damaged images were skipped: %s", len(damaged), some(damaged, 20))
    return state.trained


def _image_flops(config: ConfigDict, engine: engine_lib.Engine) -> float | None:
    """The FLOPs of one training image; None where the peak of the devices is not known."""
    if flops.peak_flops(jax.devices()[0].device_kind) is None:
        return None  # Counting takes a second, and utilisation is unknown anyway.
    return flops.train_flops(engine.model, config.pp.crop, config.pp.channels, engine.task.beside)


def _finished(workdir: str | os.PathLike, step: int) -> str:
    """What is said when a finished run is started again: that it is, and what can be done."""
    return (
        f"this run is finished: all {step} steps are done, and nothing more is trained. Next: "
        f"`vit-jax eval {workdir} --dataset=…`, or `predict`, `convert` or `plot` with the same "
        "folder. Another --workdir begins a new run; a larger --config.total_steps with "
        "--allow_other_config trains this one on."
    )


def _require_set(config: ConfigDict) -> None:
    for field in ("dataset", "model", "total_steps"):
        if config[field] in (None, ""):
            raise UserError(f"--config.{field} is not set")

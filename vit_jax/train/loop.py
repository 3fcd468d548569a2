"""The training loop."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vit_jax import checkpoint, input_pipeline
from vit_jax.checkpoint import names
from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh, place, to_devices
from vit_jax.errors import Preempted, UserError, some
from vit_jax.evaluate import flops
from vit_jax.evaluate.evaluation import evaluate
from vit_jax.families.preprocess import sides
from vit_jax.train import engine as engine_lib
from vit_jax.train import run_info
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.log import RunLog
from vit_jax.train.preemption import Preemption
from vit_jax.train.pretrained import find_pretrained
from vit_jax.train.profiling import Profiler
from vit_jax.train.run_lock import run_lock
from vit_jax.train.same_config import require_same_classes, require_same_config
from vit_jax.train.state import TrainState
from vit_jax.train.teacher import load_teacher
from vit_jax.tree import arrays
from vit_jax.variables import named


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike, *, allow_other_config: bool = False
) -> Mapping[str, Any]:
    """Trains and evaluates a model, and continues from the newest checkpoint of `workdir`.

    Args:
      config: A config as `vit_jax.configs.common` documents it; missing fields take their defaults.
      workdir: The folder that receives `checkpoint_N`, `metrics.jsonl`, TensorBoard events and
        `run.json`.
      allow_other_config: Whether to continue a run whose config differs from `config`.

    Returns:
      The parameters at the end (their moving average if the run keeps one), on the devices. For a
      model with running statistics it is {'params': parameters, 'batch_stats': statistics}.

    Raises:
      UserError: for bad input or another run in `workdir`, before any long work; and for a loss
        that is not finite.
      Preempted: after SIGTERM, once the state is saved.
    """
    started = time.monotonic()
    config = common.with_defaults(config)
    _require_set(config)
    mesh = make_mesh(config.mesh)
    engine_lib.check(config, mesh)
    pretrained = find_pretrained(config)
    make_workdir(workdir)
    with _one_run(workdir):
        return _train(config, mesh, workdir, pretrained, started, allow_other_config)


def _train(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    workdir: str | os.PathLike,
    pretrained: os.PathLike | None,
    started: float,
    allow_other_config: bool,
) -> Mapping[str, Any]:
    """`train_and_evaluate` after the checks of its arguments; it began at the time `started`."""
    ds_train, ds_test = input_pipeline.get_datasets(
        config, process_index=jax.process_index(), process_count=jax.process_count()
    )
    teacher = load_teacher(config, ds_train.class_names)
    engine = engine_lib.build(config, mesh, ds_train.num_classes, teacher)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))

    keep = config.keep_checkpoints, config.keep_best
    with Checkpoints(workdir, *keep) as checkpoints, Preemption() as preemption:
        if checkpoints.latest_step is not None and not allow_other_config:
            require_same_config(config, workdir)
            require_same_classes(ds_train.class_names, workdir)
        state = engine.init(init_key)
        if pretrained and checkpoints.latest_step is None:
            variables = _pretrained(pretrained, state, config, engine)
            # The moving average also starts from the pretrained variables, but as a copy, because
            # the step donates both and one buffer cannot be donated twice.
            ema = None if state.ema is None else jax.tree.map(jnp.copy, variables)
            state = dataclasses.replace(state, **variables, ema=ema)
        state = checkpoints.restore(like=state)
        first_step = int(state.step)
        image_flops = None
        if flops.peak_flops(jax.devices()[0].device_kind):  # Counting FLOPs takes a second.
            image_flops = flops.train_flops(engine.model, config.pp.crop, config.pp.channels)
        log = RunLog(workdir, first_step, config.total_steps, image_flops)
        profiler = Profiler(workdir, config.profile)
        if jax.process_index() == 0:
            run_info.save(run_info.RunInfo.of(config, ds_train.class_names), workdir)
        log.say(f"training on {ds_train.summary}")
        log.say(f"testing on {ds_test.summary}")
        if first_step >= config.total_steps:
            log.say(_finished(workdir, first_step))
        clock = Clock(first_step)
        with log, profiler, contextlib.closing(ds_train.iterate(first_step)) as stream:
            batches = to_devices(stream, engine.batch, config.prefetch)
            for step in range(first_step + 1, config.total_steps + 1):
                profiler.before(step)
                if step == first_step + 1:
                    log.say("compiling the first step …")
                state, scalars = engine.train_step(state, next(batches), train_key)
                profiler.after(step, scalars)
                if step == first_step + 1:
                    jax.block_until_ready(scalars)
                    log.first_step(step, time.monotonic() - started)
                    if not _due(step, config.progress_every, config.total_steps):
                        clock = Clock(step)  # The first speed that is reported has no compilation.
                stopping = preemption.after(step)
                figures = None

                if _due(step, config.progress_every, config.total_steps):
                    loss = float(scalars["loss"])
                    _require_finite(loss, step, state, checkpoints)
                    speed = config.batch * clock.steps_per_second(step)
                    log.train(step, loss, float(engine.rate(step - 1)), speed, mesh.size)

                if _due(step, config.eval_every, config.total_steps):
                    with clock.paused():
                        result = evaluate(engine, state.best_variables, ds_test, config.prefetch)
                    log.evaluation(step, result)
                    figures = result.figures

                if stopping or _due(step, config.checkpoint_every, config.total_steps):
                    _require_finite(float(scalars["loss"]), step, state, checkpoints)
                    with clock.paused():
                        checkpoints.save(state, figures)
                if stopping:
                    raise Preempted(step)
    if damaged := [*ds_train.errors, *ds_test.errors]:
        logging.warning("%d damaged images were skipped: %s", len(damaged), some(damaged, 20))
    return state.trained


class Clock:
    """Measures training steps per second, without the time of evaluations and checkpoints."""

    def __init__(self, step: int):
        self._step, self._since = step, time.monotonic()
        self._pause_began = 0.0

    def steps_per_second(self, step: int) -> float:
        """The mean speed since the previous call, or since the clock was made."""
        now = time.monotonic()
        speed = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        return speed

    def paused(self):
        """A context manager whose time does not count."""
        return self

    def __enter__(self):
        self._pause_began = time.monotonic()

    def __exit__(self, *exc_info):
        self._since += time.monotonic() - self._pause_began


def make_workdir(workdir: str | os.PathLike) -> None:
    """Makes the folder `workdir`, and raises UserError if files cannot be written to it."""
    path = epath.Path(workdir)
    probe = path / f".writable_{jax.process_index()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write to --workdir={workdir}: {e.strerror or e}") from e


@contextlib.contextmanager
def _one_run(workdir: str | os.PathLike) -> Iterator[None]:
    """Keeps other runs out of `workdir` while the block runs.

    The first process holds the lock for all of them; if it is refused, all of them stop.

    Raises:
      UserError: if another run is in `workdir`.
    """
    with contextlib.ExitStack() as stack:
        refused = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(run_lock(workdir))
            except UserError as error:
                refused = error
        if jax.process_count() > 1:
            others = multihost_utils.broadcast_one_to_all(jnp.asarray(refused is not None))
            if bool(others) and refused is None:
                refused = UserError(
                    f"process 0 was refused --workdir={workdir}, and says why; all stop"
                )
        if refused is not None:
            raise refused
        yield


def _due(step: int, every: int, last: int) -> bool:
    return step == last or bool(every and step % every == 0)


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


def _require_finite(loss: float, step: int, state: TrainState, checkpoints: Checkpoints) -> None:
    """Raises UserError for a NaN or infinite loss, before the run overwrites a good checkpoint."""
    if math.isfinite(loss):
        return
    checkpoints.wait()
    flat = arrays(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), named(state.variables)))
    bad = [name for name, finite in flat.items() if not finite]
    good = checkpoints.latest_step
    raise UserError(
        f"the loss is {loss} at step {step}. "
        + (
            f"{len(bad)} of {len(flat)} parameters are not finite after it, the first {bad[0]}. "
            if bad
            else "All parameters are still finite: the forward pass or the batch is at fault. "
        )
        + (f"The last good checkpoint is that of step {good}. " if good else "No checkpoint yet. ")
        + "A lower base_lr, a longer warm-up or a smaller grad_norm_clip may help."
    )


def _pretrained(
    path: os.PathLike, state: TrainState, config: ConfigDict, engine: engine_lib.Engine
) -> dict[str, Any]:
    """The `variables` of a state, read from the checkpoint `path`."""
    # The fresh parameters say which names and shapes are needed, and their head is used if the
    # checkpoint's head has another number of classes.
    fresh = multihost_utils.process_allgather(state.variables, tiled=True)
    height, width = sides(config.pp.crop)
    oblong = height != width  # of a square the parameters tell the grid
    variables = checkpoint.load_pretrained(
        pretrained_path=path,
        init_params=fresh,
        model_config=config.model,
        new_grid=names.grid_of(config.model, (height, width)) if oblong else None,
    )
    return place(variables, engine.shardings.variables)

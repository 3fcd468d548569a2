"""The training loop."""

import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from vit_jax import checkpoint, input_pipeline, models
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.train import run_info
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.evaluation import evaluate
from vit_jax.train.metrics import MetricWriter
from vit_jax.train.optimizers import create_learning_rate_schedule, make_optimizer
from vit_jax.train.pretrained import find_pretrained
from vit_jax.train.progress import RunProgress
from vit_jax.train.sharding import check_batch, make_mesh, replicated, split_batch, to_devices
from vit_jax.train.state import TrainState, init_state
from vit_jax.train.step import make_eval_step, make_train_step


def train_and_evaluate(config: ConfigDict, workdir: str | os.PathLike) -> Mapping[str, Any]:
    """Trains and evaluates, going on from the newest checkpoint of `workdir`.

    Args:
      config: See `vit_jax.configs.common`; missing fields take their defaults.
      workdir: Gets `checkpoint_N`, `metrics.jsonl`, TensorBoard events and `run.json`.

    Returns:
      The parameters at the end, on the devices.

    Raises:
      UserError: for bad input, before any long work.
    """
    config = common.with_defaults(config)
    mesh = make_mesh()
    _check(config, mesh)
    pretrained = find_pretrained(config)
    make_workdir(workdir)

    ds_train, ds_test = input_pipeline.get_datasets(config)
    num_classes = ds_train.num_classes
    model = models.from_config(
        {**config.model, "dtype": jnp.dtype(config.dtype)}, num_classes=num_classes
    )
    rate = create_learning_rate_schedule(
        config.total_steps, config.base_lr, config.decay_type, config.warmup_steps
    )
    tx = make_optimizer(config, rate)

    # Pinned both ways: left to the compiler, the state could come back laid out otherwise.
    full, split = replicated(mesh), split_batch(mesh)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    train_step = jax.jit(
        make_train_step(model, tx, accum_steps=config.accum_steps),
        in_shardings=(full, split, full),
        out_shardings=(full, full),
        donate_argnums=0,
    )
    eval_step = jax.jit(make_eval_step(model), in_shardings=(full, split), out_shardings=full)

    with Checkpoints(workdir, config.keep_checkpoints) as checkpoints:
        state = jax.jit(lambda key: init_state(model, tx, key, config.pp.crop), out_shardings=full)(
            init_key
        )
        if pretrained and checkpoints.latest_step is None:
            state = state.replace(params=_pretrained_params(pretrained, state, config, full))
        state = checkpoints.restore(like=state)
        first_step = int(state.step)
        logging.info("starting at step %d of %d", first_step, config.total_steps)
        run_info.save(run_info.RunInfo.of(config, ds_train.class_names), workdir)
        writer = MetricWriter(workdir, first_step)

        with RunProgress(config.total_steps, first_step) as progress:
            clock = Clock(first_step)
            batches = to_devices(ds_train.iterate(first_step), split, config.prefetch)
            for step in range(first_step + 1, config.total_steps + 1):
                state, scalars = train_step(state, next(batches), train_key)

                if _due(step, config.progress_every, config.total_steps):
                    loss = float(scalars["loss"])
                    speed = config.batch * clock.steps_per_second(step)
                    writer.write(
                        step,
                        {
                            "train_loss": loss,
                            "lr": float(rate(step - 1)),
                            "img_sec_core_train": speed / mesh.size,
                        },
                    )
                    progress.update(step, loss=loss, speed=speed)

                if _due(step, config.eval_every, config.total_steps):
                    with clock.paused():
                        result = evaluate(eval_step, state.params, ds_test, split, config.prefetch)
                    writer.write(
                        step,
                        {
                            "accuracy_test": result.accuracy,
                            "loss_test": result.loss,
                            "examples_test": result.examples,
                        },
                    )
                    progress.update(step, accuracy=result.accuracy)

                if _due(step, config.checkpoint_every, config.total_steps):
                    with clock.paused():
                        checkpoints.save(state)
        writer.close()
    return state.params


class Clock:
    """Steps per second since it was last asked, evaluations and checkpoints left out."""

    def __init__(self, step: int):
        self._step, self._since = step, time.monotonic()
        self._pause_began = 0.0

    def steps_per_second(self, step: int) -> float:
        now = time.monotonic()
        speed = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        return speed

    def paused(self):
        return self

    def __enter__(self):
        self._pause_began = time.monotonic()

    def __exit__(self, *exc_info):
        self._since += time.monotonic() - self._pause_began


def make_workdir(workdir: str | os.PathLike) -> None:
    """Raises UserError when nothing can be written there."""
    path = epath.Path(workdir)
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write to --workdir={workdir}: {e.strerror or e}") from e


def _due(step: int, every: int, last: int) -> bool:
    return step == last or bool(every and step % every == 0)


def _check(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    for field in ("dataset", "model", "total_steps"):
        if config[field] in (None, ""):
            raise UserError(f"--config.{field} is not set")
    if config.total_steps < 1:
        raise UserError(f"total_steps={config.total_steps}; expected at least 1")
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={config.dtype!r}; expected 'float32' or 'bfloat16'")
    check_batch("batch", config.batch, mesh, config.accum_steps)
    check_batch("batch_eval", config.batch_eval, mesh)


def _pretrained_params(
    path: epath.Path, state: TrainState, config: ConfigDict, sharding: jax.sharding.NamedSharding
) -> Any:
    params = checkpoint.load_pretrained(
        pretrained_path=path,
        init_params=jax.device_get(state.params),
        model_config=config.model,
    )
    return jax.device_put(params, sharding)

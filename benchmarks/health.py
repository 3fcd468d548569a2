"""What it costs to watch a run's health: `python benchmarks/health.py`.

The same training step twice, in turns: with everything that a run computes, reads and writes to
watch its health, and without. Watching is what `vit_jax/train/actions` does with `on_nonfinite` and
`spike` on and norms of each block computed, reports, clocks and the watchdog's thread. Bar: at most
1 % more time, as the median over rounds; processor time is what other programs disturb least.

    python benchmarks/health.py ViT-B_16 --batch 256 --image-size 224 --dtype bfloat16   # on a GPU
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.bench import ours
from vit_jax.devices.sharding import make_mesh
from vit_jax.train import engine as engine_lib
from vit_jax.train import norms
from vit_jax.train.actions import Step
from vit_jax.train.actions.health import Health
from vit_jax.train.actions.reporting import Reporting
from vit_jax.train.actions.watchdog import Watchdog
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.clock import Clock
from vit_jax.train.health import History
from vit_jax.train.log import RunLog
from vit_jax.train.preemption import Preemption

BAR = 1.01


Times = tuple[float, float]  # by the clock, and of the processors; seconds a step


def run(args: argparse.Namespace, workdir: pathlib.Path, watched: bool) -> Callable[[], Times]:
    """A function that trains the steps until the next report."""
    config = ours.config(args.model, args.batch, args.image_size, args.dtype, "auto").unlock()
    config.progress_every, config.total_steps = args.steps, 10**6
    if watched:
        config.on_nonfinite, config.log_norms_every = "skip", 1000
        config.spike.factor, config.spike.window = 3.0, 100
    mesh = make_mesh(config.mesh)
    with mock.patch.object(norms, "scalars", norms.scalars if watched else _nothing):
        engine = engine_lib.build(config, mesh, num_classes=1000)
        state = engine.init(jax.random.key(0))
        batch = _batch(args.batch, args.image_size, engine)
        key = jax.random.key(1)
        # The program is traced and compiled here.
        state, scalars = engine.train_step(state, batch, key)
    jax.block_until_ready(scalars)
    checkpoints, clock = Checkpoints(workdir), Clock()
    log = RunLog(workdir, 0, config.total_steps)
    health = Health(config, History(), checkpoints, log)
    watchdog = Watchdog(config.watchdog, clock, Preemption())
    actions = (health, Reporting(config, log, clock, health, engine.rate, mesh.size), watchdog)
    if watched:
        watchdog.__enter__()
    number = 0

    def steps() -> Times:
        nonlocal state, number
        began, busy = time.perf_counter(), time.process_time()
        for _ in range(args.steps):
            number += 1
            with clock.waiting() if watched else contextlib.nullcontext():
                pass  # The batch is ready.
            state, scalars = engine.train_step(state, batch, key)
            step = Step(number, config.total_steps, state, scalars)
            for action in actions if watched else ():
                action.after(step)
        jax.block_until_ready(scalars)
        float(scalars["loss"])
        took = time.perf_counter() - began, time.process_time() - busy
        return took[0] / args.steps, took[1] / args.steps

    return steps


def _nothing(*_: object) -> dict[str, jax.Array]:
    return {"finite": jnp.asarray(True)}


def _batch(rows: int, size: int, engine: engine_lib.Engine):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((rows, size, size, 3)).astype(np.float32)
    labels = np.eye(1000, dtype=np.float32)[np.arange(rows) % 1000]
    return jax.device_put({"image": images, "label": labels}, engine.batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="ViT-S_16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="between two reports")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subjects = {
            watched: run(args, pathlib.Path(folder) / str(watched), watched)
            for watched in (False, True)
        }
        for steps in subjects.values():
            steps()  # The first report compiles the learning rate.
        ratios = []
        for _ in range(args.rounds):
            without, watched = subjects[False](), subjects[True]()
            ratios.append([b / a for a, b in zip(without, watched, strict=True)])
            print(
                f"{args.model} batch {args.batch}: {1e3 * without[0]:,.1f} ms a step without, "
                f"{1e3 * watched[0]:,.1f} ms with, ratio {ratios[-1][0]:.4f}; of the "
                f"processors {1e3 * without[1]:,.1f}, {1e3 * watched[1]:,.1f}, {ratios[-1][1]:.4f}",
                flush=True,
            )
        clock, busy = map(statistics.median, zip(*ratios, strict=True))
        print(f"median ratios: {clock:.4f} by the clock, {busy:.4f} of the processors; bar {BAR}")


if __name__ == "__main__":
    main()

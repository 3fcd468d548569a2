"""A run's reports. Only the first process writes metrics and draws the progress bar."""

import contextlib
import math
import os
import time
from collections.abc import Collection, Mapping
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.evaluate import flops
from vit_jax.train import metrics
from vit_jax.train.goodput import Goodput
from vit_jax.train.metrics import MetricWriter
from vit_jax.train.progress import RunProgress
from vit_jax.train.trackers import Trackers


class RunLog:
    """Writes the metrics and shows the progress of one run. This is a context manager.

    Args:
      workdir: The folder that the metrics are written to.
      first_step: The number of steps done when the run starts.
      total_steps: The number of steps of the whole run.
      image_flops: The FLOPs of one training image, see `flops.train_flops`; with None no
        utilisation is shown.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        first_step: int,
        total_steps: int,
        image_flops: float | None = None,
    ):
        first = jax.process_index() == 0
        self._workdir = workdir
        self._writer = MetricWriter(workdir, first_step) if first else None
        self._began = time.monotonic()
        # The time of the steps that a resumed run goes on from; that of steps which it repeats is
        # not in it.
        self._device_hours = _last(workdir, "device_hours") if first else 0.0
        self._goodput = self._read_goodput()
        self._progress = RunProgress(total_steps, first_step) if first else None
        self._image_flops = image_flops
        self._trackers: Trackers | None = None
        self._save_seconds = 0.0  # since the last line of training
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._progress and self._writer:
            self._stack.callback(self._close)
            self._stack.enter_context(self._progress)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._stack.close()
        if self._trackers:
            self._trackers.close(error)

    def track(self, trackers: Trackers) -> None:
        """Gives all later figures to `trackers` too, and closes them at the end."""
        self._trackers = trackers

    def _close(self) -> None:
        if self._writer:
            self._writer.close()

    def say(self, text: str) -> None:
        """Shows a line of text."""
        if self._progress:
            self._progress.say(text)

    def first_step(self, step: int, seconds: float) -> None:
        """Says that the first step, number `step`, ended `seconds` after the start of the run."""
        if self._progress:
            self._progress.start(step)
            self._progress.say(f"first step after {seconds:.1f} s, compilation included")

    def train(
        self,
        step: int,
        *,
        loss: float,
        lr: float,
        speed: float,
        devices: int,
        more: Mapping[str, float] | None = None,
        trained_seconds: float = 0.0,
    ) -> None:
        """Reports training at `step`.

        Args:
          step: The number of steps done.
          loss: The training loss.
          lr: The learning rate of the last update.
          speed: Images per second over all devices.
          devices: The number of devices that train.
          more: Further figures by the names that `metrics.jsonl` uses.
          trained_seconds: The time of the steps since the last report.
        """
        if not (self._progress and self._writer):
            return
        local = jax.local_devices()
        utilisation = flops.utilisation(speed, self._image_flops, local[0].device_kind, devices)
        # The fullest device is the one that runs out of memory first.
        memory = max(filter(None, map(device_memory, local)), default=None)
        figures = {"train_loss": loss, "lr": lr, "img_sec_core_train": speed / devices}
        figures |= {**(more or {}), **self._goodput.add(trained_seconds)}
        if utilisation is not None:
            figures["mfu"] = utilisation
        if memory is not None:
            figures["peak_memory_gib"] = memory[0] / 2**30
        hours = (time.monotonic() - self._began) / 3600
        if self._save_seconds:
            figures["save_seconds"], self._save_seconds = self._save_seconds, 0.0
        figures["device_hours"] = self._device_hours + devices * hours
        self._write(step, figures)
        self._progress.update(step, loss=loss, speed=speed, utilisation=utilisation, memory=memory)

    def norms(self, step: int, norms: Mapping[str, float]) -> None:
        """Reports the norms of the blocks at `step`."""
        self._write(step, norms)

    def evaluation(
        self, step: int, name: str, figures: Mapping[str, float], seconds: float | None = None
    ) -> None:
        """Reports the figures of the evaluation `name` of the state after `step` updates.

        Args:
          step: The number of updates done.
          name: The name of the evaluation.
          figures: Its figures by the names that `metrics.jsonl` uses.
          seconds: The time that it took.
        """
        if self._progress:
            took = {} if seconds is None else {"eval_seconds": seconds}
            self._write(step, {**figures, **took})
            self._progress.evaluated(step, name, figures)

    def evaluated(self, step: int, names: Collection[str]) -> bool:
        """Whether some of these figures are reported of `step`; all processes get one answer."""
        found = False
        if self._writer:
            lines = metrics.read(self._workdir)
            found = any(line["step"] == step and line.keys() & {*names} for line in lines)
        if jax.process_count() > 1:
            found = bool(multihost_utils.broadcast_one_to_all(np.asarray(found)))
        return found

    def saved(self, seconds: float) -> None:
        """Reports, with the next line of training, for how long the run waited for a checkpoint."""
        self._save_seconds += seconds

    def go_back(self, step: int) -> None:
        """Forgets what was reported of later steps than `step`, from which the run goes on."""
        if self._writer:
            self._writer.close()
            self._writer = MetricWriter(self._workdir, step)
            self._goodput = self._read_goodput()

    def _read_goodput(self) -> Goodput:
        lines = metrics.read(self._workdir) if self._writer else []
        return Goodput.of(lines, time.time(), time.monotonic() - self._began)

    def _write(self, step: int, figures: Mapping[str, float]) -> None:
        if self._writer:
            # JSON has no word for what is not finite.
            finite = {name: x for name, x in figures.items() if math.isfinite(x)}
            self._writer.write(step, finite)
            if self._trackers:
                self._trackers.write(step, finite)


def _last(workdir: str | os.PathLike, figure: str) -> float:
    """The last value of a figure that the metrics of a run report; 0 if there is none."""
    values = [line[figure] for line in metrics.read(workdir) if figure in line]
    return values[-1] if values else 0.0


def device_memory(device: Any) -> tuple[int, int] | None:
    """The peak of a device's used bytes and its capacity in bytes; None if it does not report them.

    CPUs are among the devices that report nothing.
    """
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" not in stats or "bytes_limit" not in stats:
        return None
    return stats["peak_bytes_in_use"], stats["bytes_limit"]

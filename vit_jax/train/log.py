"""A run's reports. Only the first process writes metrics and draws the progress bar."""

import contextlib
import os
from typing import Any, Self

import jax

from vit_jax.evaluate import flops
from vit_jax.evaluate.evaluation import Evaluation
from vit_jax.train.metrics import MetricWriter
from vit_jax.train.progress import RunProgress


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
        self._writer = MetricWriter(workdir, first_step) if first else None
        self._progress = RunProgress(total_steps, first_step) if first else None
        self._image_flops = image_flops
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._progress and self._writer:
            self._stack.callback(self._writer.close)
            self._stack.enter_context(self._progress)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def say(self, text: str) -> None:
        """Shows a line of text."""
        if self._progress:
            self._progress.say(text)

    def first_step(self, step: int, seconds: float) -> None:
        """Says that the first step, number `step`, ended `seconds` after the start of the run."""
        if self._progress:
            self._progress.start(step)
            self._progress.say(f"first step after {seconds:.1f} s, compilation included")

    def train(self, step: int, loss: float, lr: float, speed: float, devices: int) -> None:
        """Reports training at `step`; `speed` is in images per second over all `devices`."""
        if self._progress and self._writer:
            self._writer.write(
                step, {"train_loss": loss, "lr": lr, "img_sec_core_train": speed / devices}
            )
            device = jax.local_devices()[0]
            self._progress.update(
                step,
                loss=loss,
                speed=speed,
                utilisation=flops.utilisation(
                    speed, self._image_flops, device.device_kind, devices
                ),
                memory=device_memory(device),
            )

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Reports an evaluation that was made after `step` updates."""
        if self._progress and self._writer:
            self._writer.write(step, result.figures)
            self._progress.evaluated(step, accuracy=result.accuracy, loss=result.loss)


def device_memory(device: Any) -> tuple[int, int] | None:
    """The peak of a device's used bytes and its capacity in bytes; None if it does not report them.

    CPUs are among the devices that report nothing.
    """
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" not in stats or "bytes_limit" not in stats:
        return None
    return stats["peak_bytes_in_use"], stats["bytes_limit"]

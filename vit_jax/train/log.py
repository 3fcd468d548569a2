"""What a run reports: the first process writes metrics and draws the bar, the others are silent."""

import os
from typing import Self

import jax

from vit_jax.train.evaluation import Evaluation
from vit_jax.train.metrics import MetricWriter
from vit_jax.train.progress import RunProgress


class RunLog:
    """Metrics and progress of one run. A context manager."""

    def __init__(self, workdir: str | os.PathLike, first_step: int, total_steps: int):
        first = jax.process_index() == 0
        self._writer = MetricWriter(workdir, first_step) if first else None
        self._progress = RunProgress(total_steps, first_step) if first else None

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._progress and self._writer:
            self._progress.__exit__(*exc_info)
            self._writer.close()

    def train(self, step: int, loss: float, lr: float, speed: float, devices: int) -> None:
        """`speed` in images per second over all `devices`."""
        if self._progress and self._writer:
            self._writer.write(
                step, {"train_loss": loss, "lr": lr, "img_sec_core_train": speed / devices}
            )
            self._progress.update(step, loss=loss, speed=speed)

    def evaluation(self, step: int, result: Evaluation) -> None:
        if self._progress and self._writer:
            self._writer.write(
                step,
                {
                    "accuracy_test": result.accuracy,
                    "loss_test": result.loss,
                    "examples_test": result.examples,
                },
            )
            self._progress.update(step, accuracy=result.accuracy)

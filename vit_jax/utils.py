"""Functions with the names and signatures of the original's `utils` module."""

import logging as python_logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from vit_jax.train.schedules import create_learning_rate_schedule
from vit_jax.train.step import accumulated

__all__ = ["accumulate_gradient", "add_gfile_logger", "create_learning_rate_schedule"]


def accumulate_gradient(
    loss_and_grad_fn: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]],
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    accum_steps: int,
) -> tuple[jax.Array, Any]:
    """Mean of `loss_and_grad_fn(params, images, labels)` over `accum_steps` parts of the batch."""

    def gradient(params: Any, statistics: Any, batch: Any, key: jax.Array):
        loss, grads = loss_and_grad_fn(params, batch["image"], batch["label"])
        return (loss, (statistics, {})), grads

    batch = {"image": images, "label": labels}
    key = jax.random.key(0)  # the caller's function draws nothing of ours
    (loss, _), grads = accumulated(gradient, accum_steps=accum_steps)(params, {}, batch, key)
    return loss, grads


def add_gfile_logger(
    workdir: str | os.PathLike, *, basename: str = "train", level: int = python_logging.INFO
) -> None:
    """Appends all log messages to the file `workdir/<basename>.log` too."""
    path = pathlib.Path(workdir)
    path.mkdir(parents=True, exist_ok=True)
    handler = python_logging.FileHandler(path / f"{basename}.log", encoding="utf-8")
    handler.setLevel(level)
    handler.setFormatter(logging.PythonFormatter())
    python_logging.getLogger("").addHandler(handler)

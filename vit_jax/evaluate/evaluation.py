"""Accuracy over a whole split."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from vit_jax.devices.sharding import to_devices
from vit_jax.train.engine import Engine

_UNDER_WAY = 8  # batches


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures of one pass: exact counts, and the mean loss, whose sum is rounded only once.

    Attributes:
      examples: The number of examples of the split.
      loss: The mean loss over all examples.
      counted: The number of examples that have a label; None where nothing is right or wrong.
      correct: The number of counted examples whose likeliest class is one of their labels.
      correct_top5: The number of counted examples of which one of the five likeliest classes is a
        label; None for five classes or fewer.
    """

    examples: int
    loss: float
    counted: int | None = None
    correct: int = 0
    correct_top5: int | None = None

    @property
    def accuracy(self) -> float:
        """The top-1 accuracy, 0 to 1."""
        return self.correct / max(self.counted or 0, 1)

    @property
    def figures(self) -> dict[str, float]:
        """The figures by the names of `names`."""
        found = {"accuracy": self.accuracy, "loss": self.loss, "examples": self.examples}
        if self.correct_top5 is not None:
            found["accuracy_top5"] = self.correct_top5 / max(self.counted or 0, 1)
        return {
            name: found[name]
            for name in names(self.correct_top5 is not None, self.counted is not None)
        }


def names(top5: bool, counts: bool = True) -> tuple[str, ...]:
    """The names of an evaluation's figures.

    Args:
      top5: Whether there are more than five classes.
      counts: Whether anything is right or wrong; else there is no accuracy.
    """
    shares = ("accuracy", *(("accuracy_top5",) if top5 else ())) if counts else ()
    return (*shares, "loss", "examples")


def evaluate(engine: Engine, variables: Any, batches: Iterable[Any], ahead: int) -> Evaluation:
    """The figures over `batches`, without their padding.

    The figures are the same to the last bit in every process, for any number of processes and
    devices that split the batch, and for any batch size. The loss of an example does not depend on
    these (see `make_eval_step`), and `math.fsum` does not depend on the order of the losses.
    """
    # Results stay on the devices until the pass is over, so that no batch waits for a transfer. But
    # no more than a few batches are under way, so that a pass that is given up ends soon.
    found: list[dict[str, Any]] = []
    assert engine.eval_step is not None, "a task of pairs has no figures of single images"
    with to_devices(batches, engine.batch, ahead) as on_devices:
        for batch in on_devices:
            found.append(engine.eval_step(variables, batch))
            if len(found) > _UNDER_WAY:
                jax.block_until_ready(found[-1 - _UNDER_WAY])
    losses = np.concatenate([np.asarray(figures.pop("losses"), np.float64) for figures in found])
    counted = {name: sum(int(figures[name]) for figures in found) for name in found[0]}
    return Evaluation(loss=math.fsum(losses) / max(counted["examples"], 1), **counted)

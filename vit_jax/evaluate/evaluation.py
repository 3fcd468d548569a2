"""Accuracy over a whole split."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from vit_jax.devices.sharding import to_devices
from vit_jax.train.engine import Engine


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures of one pass: exact counts, and the mean loss, whose sum is rounded only once.

    Attributes:
      examples: The number of examples of the split.
      counted: The number of examples that have a label.
      correct: The number of counted examples whose likeliest class is one of their labels.
      loss: The mean loss over all examples.
      correct_top5: The number of counted examples of which one of the five likeliest classes is a
        label; None for five classes or fewer.
    """

    examples: int
    counted: int
    correct: int
    loss: float
    correct_top5: int | None = None

    @property
    def accuracy(self) -> float:
        """The top-1 accuracy, 0 to 1."""
        return self.correct / max(self.counted, 1)

    @property
    def figures(self) -> dict[str, float]:
        """The figures under the names that `metrics.jsonl` uses."""
        top5 = {}
        if self.correct_top5 is not None:
            top5["accuracy_top5_test"] = self.correct_top5 / max(self.counted, 1)
        return {
            "accuracy_test": self.accuracy,
            **top5,
            "loss_test": self.loss,
            "examples_test": self.examples,
        }


def evaluate(engine: Engine, variables: Any, batches: Iterable[Any], ahead: int) -> Evaluation:
    """The figures over `batches`, without their padding.

    The figures are the same to the last bit in every process, for any number of processes and
    devices that split the batch, and for any batch size. The loss of an example does not depend on
    these (see `make_eval_step`), and `math.fsum` does not depend on the order of the losses.
    """
    # Results stay on the devices until the pass is over, so that no batch waits for a transfer.
    found = [
        engine.eval_step(variables, batch) for batch in to_devices(batches, engine.batch, ahead)
    ]
    losses = np.concatenate([np.asarray(figures.pop("losses"), np.float64) for figures in found])
    counted = {name: sum(int(figures[name]) for figures in found) for name in found[0]}
    return Evaluation(loss=math.fsum(losses) / max(counted["examples"], 1), **counted)

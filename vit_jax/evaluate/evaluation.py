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
    """Figures of one pass: exact counts, and the mean loss, whose sum is rounded but once.

    Attributes:
      examples: All of the split.
      counted: Those with a label.
      correct: Of these, whose likeliest class is a label.
      loss: Mean over all examples.
      correct_top5: Of these, where one of the five likeliest is; None for up to five classes.
    """

    examples: int
    counted: int
    correct: int
    loss: float
    correct_top5: int | None = None

    @property
    def accuracy(self) -> float:
        """Top-1, 0 to 1."""
        return self.correct / max(self.counted, 1)

    @property
    def figures(self) -> dict[str, float]:
        """As `metrics.jsonl` names them."""
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
    """Figures over `batches`, whose padding the mask leaves out.

    They are the same to the last bit in every process, for any number of processes and devices
    that split the batch, and for any size of it: an example's loss is (see `make_eval_step`), and
    `fsum` does not depend on the order.
    """
    # What is found stays on the devices until the pass is over: nothing waits within it.
    found = [
        engine.eval_step(variables, batch) for batch in to_devices(batches, engine.batch, ahead)
    ]
    losses = np.concatenate([np.asarray(figures.pop("losses"), np.float64) for figures in found])
    counted = {name: sum(int(figures[name]) for figures in found) for name in found[0]}
    return Evaluation(loss=math.fsum(losses) / max(counted["examples"], 1), **counted)

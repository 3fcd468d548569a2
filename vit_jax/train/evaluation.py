"""Accuracy over a whole split."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from vit_jax.train.engine import Engine
from vit_jax.train.sharding import to_devices


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of one pass: exact counts, and the mean loss.

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


def evaluate(engine: Engine, params: Any, batches: Iterable[Any], ahead: int) -> Evaluation:
    """Counts over `batches`, whose padding the mask leaves out; the same in every process."""
    # The sums stay on the devices until the pass is over: nothing waits within it.
    sums = [engine.eval_step(params, batch) for batch in to_devices(batches, engine.batch, ahead)]
    totals = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
    loss = totals.pop("loss") / max(totals["examples"], 1)
    return Evaluation(loss=loss, **{name: round(total) for name, total in totals.items()})

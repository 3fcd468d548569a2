"""Accuracy over a whole split."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from vit_jax.train.engine import Engine
from vit_jax.train.sharding import to_devices


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of one pass: exact counts, and the mean loss."""

    examples: int
    correct: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Top-1, 0 to 1."""
        return self.correct / self.examples

    @property
    def figures(self) -> dict[str, float]:
        """As `metrics.jsonl` names them."""
        return {
            "accuracy_test": self.accuracy,
            "loss_test": self.loss,
            "examples_test": self.examples,
        }


def evaluate(engine: Engine, params: Any, batches: Iterable[Any], ahead: int) -> Evaluation:
    """Counts over `batches`, whose padding the mask leaves out; the same in every process."""
    # The sums stay on the devices until the pass is over: nothing waits within it.
    sums = [engine.eval_step(params, batch) for batch in to_devices(batches, engine.batch, ahead)]
    totals = {name: sum(float(s[name]) for s in sums) for name in ("examples", "correct", "loss")}
    examples = round(totals["examples"])
    return Evaluation(examples, round(totals["correct"]), totals["loss"] / max(examples, 1))

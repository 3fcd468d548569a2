"""The evaluations of a run: that of the test split, and those that `config.evals` names."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.errors import UserError
from vit_jax.evaluate.kinds import KINDS, Evaluator, Follow, Setting, of_test, require_fit
from vit_jax.input_pipeline.loader import TestDataset
from vit_jax.train.cadence import due
from vit_jax.train.state import TrainState

# How an entry of `config.evals` names the variables that it evaluates.
WEIGHTS: dict[str, Callable[[TrainState], Any]] = {
    "best": lambda state: state.best_variables,
    "raw": lambda state: state.raw_variables,
    "ema": lambda state: state.ema,
}
# The name of the test split's evaluation, and how its figures are called; those of others are
# called after the evaluation, `val/accuracy`.
TEST, _TEST_FORM = "test", "{}_test"


@dataclasses.dataclass(frozen=True)
class Named:
    """An evaluation of a run.

    Attributes:
      name: Its name, a key of `config.evals` or 'test'.
      evaluator: What it computes.
      every: Steps between two evaluations; 0 for none of these.
      at: Further steps at which it is made.
      at_end: Whether it is made after the last step.
      weights: The variables that it evaluates, a key of `WEIGHTS`.
    """

    name: str
    evaluator: Evaluator
    every: int
    at: Sequence[int] = ()
    at_end: bool = True
    weights: str = "best"

    def due(self, step: int, last: int) -> bool:
        """Whether it is to be made after `step` of `last` steps."""
        if step == last and self.at_end:
            return True
        return step in self.at or bool(self.every and due(step, self.every, last=0))

    @property
    def names(self) -> list[str]:
        """The names of its figures."""
        return list(self._named(dict.fromkeys(self.evaluator.names)))

    def figures(self, state: TrainState, follow: Follow = iter) -> dict[str, float]:
        """The figures of a state, by their names in `metrics.jsonl`.

        Args:
          state: The state to evaluate.
          follow: What the batches are passed through on their way.
        """
        return self.figures_of(WEIGHTS[self.weights](state), follow)

    def figures_of(self, variables: Any, follow: Follow = iter) -> dict[str, float]:
        """The figures of a model's variables, as `figures`."""
        return self._named(self.evaluator.run(variables, follow))

    def _named(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        form = _TEST_FORM if self.name == TEST else f"{self.name}/{{}}"
        return {form.format(name): value for name, value in figures.items()}


def of_run(setting: Setting, test: TestDataset) -> tuple[Named, ...]:
    """The evaluations that the run itself makes, that of the test split first.

    Args:
      setting: What they are built from; the durations of its config are steps.
      test: The test split.

    Raises:
      UserError: for an entry whose data cannot be opened, or does not fit the run; and for a
        `keep_best` that is no figure of any of them.
    """
    config = setting.config
    entries = {name: entry for name, entry in config.evals.items() if not entry.standalone}
    split = of_test(test, setting)
    found = (Named(TEST, split, config.eval_every), *named(entries, setting))
    known = [name for one in found for name in one.names]
    if config.keep_best and config.keep_best not in known:
        raise UserError(
            f"keep_best={config.keep_best!r} is no figure of this run's evaluations; expected "
            f"None or one of {', '.join(known)}"
        )
    return found


def named(entries: Mapping[str, ConfigDict], setting: Setting) -> tuple[Named, ...]:
    """The evaluations of some complete entries of `config.evals`, in the order of their names.

    Raises:
      UserError: as `of_run`.
    """
    return tuple(_one(name, entries[name], setting) for name in sorted(entries))


def _one(name: str, entry: ConfigDict, setting: Setting) -> Named:
    if entry.weights not in WEIGHTS:
        raise UserError(
            f"config.evals.{name}.weights={entry.weights!r}; expected one of {', '.join(WEIGHTS)}"
        )
    if entry.weights == "ema" and not setting.config.ema.decay:
        raise UserError(
            f"config.evals.{name}.weights='ema': this run keeps no moving average, config.ema.decay"
            " is 0"
        )
    try:
        require_fit(entry.kind, setting)
        evaluator = KINDS[entry.kind](name, entry, setting)
    except UserError as error:
        raise UserError(f"config.evals.{name}: {error}") from error
    return Named(name, evaluator, entry.every, entry.at, entry.at_end, entry.weights)


def damaged(evaluations: Iterable[Named]) -> list[str]:
    """The damaged images that the evaluations have skipped."""
    return [e for one in evaluations for data in one.evaluator.datasets for e in data.errors]

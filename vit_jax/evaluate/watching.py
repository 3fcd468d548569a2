"""Evaluates the checkpoints of a run that goes on elsewhere, as they appear.

The figures of the evaluation NAME lie in `RUN/evals/NAME/`, in metrics and TensorBoard events of
their own, where `vit-jax plot RUN` finds them. Nothing else in the run's folder is touched.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from ml_collections import ConfigDict

from vit_jax import stores
from vit_jax.configs import common
from vit_jax.devices.sharding import make_mesh, place
from vit_jax.errors import UserError
from vit_jax.evaluate.kinds import Setting
from vit_jax.train import checkpointing, evaluations, metrics, run_info
from vit_jax.train import engine as engine_lib
from vit_jax.train.evaluations import Named
from vit_jax.train.resolved import resolved
from vit_jax.train.workdir import opened
from vit_jax.variables import arrays, collections

POLL = 10.0  # seconds between two looks at the run's folder


def watch(
    run: str | os.PathLike,
    entries: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    patience: float | None = None,
    poll: float = POLL,
    say: Callable[[str], None] = print,
) -> None:
    """Evaluates every checkpoint of `run`, those that are there first, until the run has ended.

    The run has ended when the checkpoint of its last step is evaluated. A checkpoint that the run
    removes before its turn comes is left out. What was evaluated before is not evaluated again.

    Args:
      run: The workdir of a run.
      entries: Entries as of `config.evals`, by their names; None takes those of the run's config
        that are `standalone`.
      changes: Fields of the run's config that are others on this host, such as `tfds_data_dir`.
      patience: Seconds without a new checkpoint after which it ends, too; None for no limit.
      poll: Seconds between two looks at the folder.
      say: Where a line for each evaluation goes.

    Raises:
      UserError: for a folder without a run, a run without standalone evaluations, an entry that
        does not fit the run, and an evaluation that another process makes.
    """
    wanted = _entries(run, entries)
    watched = _Watched.open(run, wanted, changes or {})
    with contextlib.ExitStack() as stack:
        reports = {name: stack.enter_context(_Report(run, name)) for name in wanted}
        seen, last_news = set[int](), time.monotonic()
        while True:
            total = run_info.load(run).config["total_steps"]  # a run may be made longer
            steps, _ = checkpointing.stored_steps(run, None)
            for step in [step for step in steps if step not in seen]:
                seen.add(step)
                watched.evaluate(step, reports, say)
                last_news = time.monotonic()
                break  # Others may have come, or gone, meanwhile.
            else:
                if total in seen:
                    return
                if patience is not None and time.monotonic() - last_news > patience:
                    say(f"no new checkpoint of {run} for {patience:g} s: this is the end")
                    return
                time.sleep(poll)


def _entries(
    run: str | os.PathLike, entries: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, dict[str, Any]]:
    if entries is None:
        recorded = run_info.load(run).config.get("evals", {})
        entries = {name: entry for name, entry in recorded.items() if entry.get("standalone")}
        if not entries:
            raise UserError(
                f"{run} has no evaluation with standalone=True in its config.evals "
                f"({', '.join(recorded) or 'it names none'}); --dataset says what to evaluate"
            )
    return {name: common.evaluation(name, entry) for name, entry in entries.items()}


@dataclasses.dataclass(frozen=True)
class _Watched:
    """A run, and the evaluations to make of its checkpoints on the devices of this host."""

    run: str | os.PathLike
    engine: engine_lib.Engine
    evaluations: tuple[Named, ...]

    @classmethod
    def open(cls, run: str | os.PathLike, entries: Mapping[str, Any], changes: Any) -> Self:
        info = run_info.load(run)
        config = common.with_defaults(ConfigDict(info.config)).unlock()
        config.update(changes)
        # No figure depends on these, and those of the run may not fit this host's devices.
        config.mesh, config.sharding_rules, config.attend = {"data": -1}, (), "auto"
        mesh = make_mesh(config.mesh)
        config.batch = config.batch_eval = mesh.size * config.batch_eval_device
        config.accum_steps = 1
        config.evals = {name: ConfigDict(entry) for name, entry in entries.items()}
        config = resolved(config, epoch_images=1)  # The durations of a recorded config are steps.
        engine = engine_lib.build(config, mesh, info.num_classes)
        setting = Setting(config, engine, info.class_names)
        return cls(run, engine, evaluations.named(config.evals, setting))

    def evaluate(
        self, step: int, reports: "Mapping[str, _Report]", say: Callable[[str], None]
    ) -> None:
        """Makes the evaluations of one checkpoint that were not made before."""
        todo = [one for one in self.evaluations if step not in reports[one.name].done]
        try:
            variables = {kind: self._variables(step, kind) for kind in {x.weights for x in todo}}
        except (OSError, ValueError, KeyError) as error:
            if step in checkpointing.stored_steps(self.run, None)[0]:
                raise UserError(f"cannot read {self.run}/checkpoint_{step}: {error}") from error
            say(f"step {step}: the run removed the checkpoint before its turn came")
            return
        for one in todo:
            figures = one.figures_of(variables[one.weights])
            reports[one.name].write(step, figures)
            shown = ", ".join(f"{name} {value:.6g}" for name, value in figures.items())
            say(f"step {step}: {shown}")

    def _variables(self, step: int, weights: str) -> Any:
        # Trained adapters are stored apart; the model takes the parameters that they are merged in.
        trained = weights == "raw" and self.engine.shardings.lora_scale is None
        stored = checkpointing.load_params(self.run, step, trained=trained)
        shardings = self.engine.evaluated
        return place(collections(stored, arrays(shardings["batch_stats"])), shardings)


class _Report:
    """The metrics of one evaluation, which belong to one process at a time."""

    def __init__(self, run: str | os.PathLike, name: str):
        self._where = stores.join(run, metrics.EVALS, name)
        self._stack = contextlib.ExitStack()
        self.done: set[int] = set()

    def __enter__(self) -> Self:
        folder = self._stack.enter_context(opened(self._where))
        with contextlib.suppress(UserError):  # There are no metrics yet.
            self.done = {int(line["step"]) for line in metrics.read(folder)}
        self._writer = metrics.MetricWriter(folder, max(self.done, default=0))
        self._stack.callback(self._writer.close)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._writer.write(step, figures)
        self.done.add(step)

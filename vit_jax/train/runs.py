"""What is known of the runs in some folders, from their small files alone."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.train import metrics, run_info, run_lock, same_config

# The names of what an evaluation judges a model by, `NAME/accuracy` or `accuracy_test`; the norms
# and times in a run's metrics are none.
_FIGURE = re.compile(r"(?!train_)(?:.*/)?[^/]*(?:accuracy|loss|top\d)[^/]*")
_CHECKPOINT = re.compile(r"checkpoint_(\d+)")


class Figure(NamedTuple):
    """A figure of a run's evaluations.

    Attributes:
      last: The value of the last evaluation.
      best: The least value if the last part of the name contains 'loss', the greatest otherwise.
      best_step: The step of the first evaluation that gave it.
    """

    last: float
    best: float
    best_step: int


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      path: The folder of the run.
      state: 'running'; 'finished' if the checkpoint of its last step is there; or 'stopped'.
      step: The number of updates that are reported or saved.
      total_steps: The number of updates of the whole run.
      figures: The figures of its evaluations by name.
      config: All fields of its config by dotted name.
      starts: The number of its starts.
    """

    path: str
    state: str
    step: int
    total_steps: int
    figures: dict[str, Figure]
    config: dict[str, Any]
    starts: int


def find(folders: Sequence[str]) -> list[str]:
    """The folders of all runs in and below `folders`, each once; runs do not lie in runs.

    Raises:
      UserError: for a folder that is not there or has no run.
    """
    found: dict[str, None] = {}
    for folder in folders:
        if not stores.is_dir(folder):
            raise UserError(f"{folder} is no folder")
        try:
            below = list(_below(folder))
        except OSError as error:
            raise UserError(f"cannot read {folder}: {error.strerror}") from error
        if not below:
            raise UserError(f"no run in {folder}: the folder of a run holds a run.json")
        found |= dict.fromkeys(below)
    return list(found)


def read(path: str) -> Run:
    """The facts of the run in the folder `path`.

    Raises:
      UserError: if its `run.json` cannot be read.
    """
    info = run_info.load(path)
    lines = _lines(path)
    saved = max(_checkpoints(path), default=0)
    total = info.config.get("total_steps") or 0
    if run_lock.holder(path):
        state = "running"
    else:
        state = "finished" if total and saved >= total else "stopped"
    return Run(
        path=path,
        state=state,
        step=max(saved, *(int(line["step"]) for line in lines), 0),
        total_steps=total,
        figures=_figures(lines),
        config=same_config.completed(info.config),
        starts=len(info.starts),
    )


def differing(runs: Sequence[Run]) -> list[str]:
    """The names of the config's fields in which the runs differ; 'unset' is a value too."""
    names = sorted(set().union(*(run.config for run in runs)))
    return [
        name for name in names if any(value(run, name) != value(runs[0], name) for run in runs[1:])
    ]


def value(run: Run, name: str) -> Any:
    """The value of a field of a run's config; 'unset' for a field that its model does not have."""
    return run.config.get(name, same_config.UNSET)


def _below(folder: str) -> Iterator[str]:
    if run_info.is_run(folder):
        yield folder
        return
    for entry in sorted(stores.scan(folder), key=lambda entry: entry.name):
        hidden = entry.name.startswith(".") or os.path.islink(entry.path)
        if entry.is_dir() and not hidden:
            yield from _below(stores.join(folder, entry.name))


def _lines(path: str) -> list[dict[str, float]]:
    """The metrics of a run; none before its first report."""
    try:
        return metrics.read(path)
    except UserError:
        return []


def _checkpoints(path: str) -> list[int]:
    names = (entry.name for entry in stores.scan(path))
    return [int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name))]


def _figures(lines: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    series: dict[str, list[tuple[float, int]]] = {}
    for line in lines:
        for name in line:
            if _FIGURE.fullmatch(name):
                series.setdefault(name, []).append((line[name], int(line["step"])))
    figures = {}
    for name, values in sorted(series.items()):
        choose = min if "loss" in name.rpartition("/")[2] else max
        best, step = choose(values, key=lambda pair: pair[0])
        figures[name] = Figure(values[-1][0], best, step)
    return figures

"""Trackers show the figures of runs elsewhere: Weights & Biases, MLflow and trackio.

`config.trackers` names them. `metrics.jsonl` has everything that they are given, so that a tracker
that fails, hangs or is not installed costs a chart and nothing of the run: see `guarded.py`. Keys
and addresses of servers come from the environment, as each library reads it.

A tracker is a small class in a module of this folder, and an entry in `KNOWN`.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from absl import logging

from vit_jax.errors import Preempted, UserError, chosen
from vit_jax.train.same_config import completed
from vit_jax.train.trackers import ids
from vit_jax.train.trackers.guarded import Guarded

PROJECT = "vit-jax"
# Seconds that the trackers of a run have together to send what is left, at its end and when it
# fails or is stopped: a machine that is taken away may leave only 30 seconds.
CLOSING, STOPPING = 30.0, 5.0

Ending = Literal["finished", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class Description:
    """What a tracker is told of a run.

    Attributes:
      name: The name of the run's folder.
      folder: The run's folder on this machine, for files of the tracker's own.
      config: Every field of the config by its dotted name, without secrets.
      start: The facts of this start, see `vit_jax.train.provenance.start`.
    """

    name: str
    folder: pathlib.Path
    config: Mapping[str, Any]
    start: Mapping[str, Any]


class Tracker(Protocol):
    """One tracker of one run. All calls come from one thread, which is not the run's."""

    def start(self, run: Description, key: str | None) -> str:
        """Begins a run, or goes on with the run that an earlier start was given the key of.

        Returns:
          The key by which the tracker finds this run again.
        """
        ...

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds finite figures of a step. A run that goes back repeats steps that were written."""
        ...

    def close(self, ending: Ending) -> None:
        """Sends what is left, and ends the run."""
        ...


def _wandb() -> Tracker:
    from vit_jax.train.trackers.wandb import Wandb

    return Wandb()


def _mlflow() -> Tracker:
    from vit_jax.train.trackers.mlflow import MLflow

    return MLflow()


def _trackio() -> Tracker:
    from vit_jax.train.trackers.trackio import Trackio

    return Trackio()


# By the name of the package that it needs: what makes it, and how the package is installed.
KNOWN: dict[str, tuple[Callable[[], Tracker], str]] = {
    "wandb": (_wandb, 'pip install "vit-jax[wandb]"'),
    "mlflow": (_mlflow, 'pip install "vit-jax[mlflow]"'),
    "trackio": (_trackio, "pip install trackio"),
}


def check(names: Sequence[str]) -> None:
    """Raises UserError unless `names` is a list of different trackers that are known."""
    if not isinstance(names, (list, tuple)) or any(names.count(name) > 1 for name in names):
        raise UserError(
            f"trackers={names!r}; expected different names in a tuple, such as ('wandb',)"
        )
    for name in names:
        chosen(str(name), KNOWN, "tracker")


class Trackers:
    """The trackers of one run. Nothing here raises, and nothing waits but `close`.

    Args:
      names: Names in `KNOWN`. One whose package is not installed is left out with a warning: a run
        that is restarted on another machine should train there, not end for want of a chart.
      workdir: The folder of the run, or an object whose text is the address that it stands for.
      config: The config of the run, without secrets.
      start: The facts of this start.
    """

    def __init__(
        self,
        names: Sequence[str],
        workdir: str | os.PathLike,
        config: Mapping[str, Any],
        start: Mapping[str, Any],
    ):
        folder = pathlib.Path(workdir).absolute()
        name = pathlib.PurePath(str(workdir)).name or folder.name
        run = Description(name, folder, completed(config), start)
        self._guarded: list[Guarded] = []
        for name in names:
            make, remedy = KNOWN[name]
            if not _installed(name):
                logging.warning(
                    "config.trackers: %s is not installed: %s. The run goes on without it",
                    name,
                    remedy,
                )
                continue
            begin = functools.partial(_begun, make, name, run)
            self._guarded.append(Guarded(name, begin))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Hands the figures of one step to all trackers."""
        for one in self._guarded:
            one.write(step, scalars)

    def close(self, error: BaseException | None = None) -> None:
        """Ends all trackers, which together have `CLOSING` seconds, or `STOPPING` after an error.

        Args:
          error: What ends the run before its last step; None at its end.
        """
        until = time.monotonic() + (CLOSING if error is None else STOPPING)
        for one in self._guarded:
            one.finish(_ending(error))
        for one in self._guarded:
            one.wait(until)


def _installed(package: str) -> bool:
    # A folder `wandb`, in which that library writes where it is not told where, is no package.
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _begun(make: Callable[[], Tracker], name: str, run: Description) -> Tracker:
    tracker = make()
    known = ids.load(run.folder).get(name)
    key = tracker.start(run, known)
    if key != known:
        with contextlib.suppress(OSError):  # The run itself meets a full disk, and says so.
            ids.save(run.folder, name, key)
    return tracker


def _ending(error: BaseException | None) -> Ending:
    if error is None:
        return "finished"
    return "stopped" if isinstance(error, (Preempted, KeyboardInterrupt)) else "failed"

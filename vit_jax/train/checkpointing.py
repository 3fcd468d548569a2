"""Checkpoints of a run, `workdir/checkpoint_N`. Training calls Orbax in this module only.

A checkpoint has two items: 'params', which other commands read without the rest, and 'rest', which
only training needs. Running statistics are stored among the parameters, see `vit_jax.variables`.
"""

import contextlib
import functools
import logging as std_logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vit_jax.errors import UserError
from vit_jax.train.state import TrainState
from vit_jax.variables import arrays, collections, named

_PREFIX = "checkpoint"
_ITEMS = ("params", "rest")


class Checkpoints:
    """The checkpoints of one workdir, written in the background.

    This is a context manager that waits for the last write when it is left. A half-written
    checkpoint has a temporary name and is therefore never read.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 0, keep_best: str | None = None):
        """Opens the checkpoints of `workdir`.

        Args:
          workdir: The folder of the run.
          keep: The number of newest checkpoints to keep; 0 keeps all.
          keep_best: The name of an evaluation figure. The checkpoint with the best value is kept
            too: the smallest value if the name contains 'loss', the greatest otherwise.
            Checkpoints that were saved without figures are not compared.

        Raises:
          UserError: if the workdir holds checkpoint files of the original code.
        """
        path = epath.Path(workdir).absolute()
        _refuse_files(path)
        self._keep_best = keep_best or None
        std_logging.getLogger("absl").addFilter(_is_news)
        _mute_late_writes()
        self._manager = _open(
            path, cleanup_tmp_directories=True, **_preservation(keep, self._keep_best)
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        try:
            self.wait()
        finally:
            self._manager.close()

    def wait(self) -> None:
        """Waits until every checkpoint that was asked for is on disk.

        Raises:
          UserError: if the last checkpoint could not be written.
        """
        with self._write_errors():
            self._manager.wait_until_finished()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None before the first checkpoint."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint by the figure `keep_best`.

        None if no such figure was named, or before the first checkpoint with figures.
        """
        return self._manager.best_step() if self._keep_best else None

    def save(self, state: TrainState, figures: Mapping[str, float] | None = None) -> None:
        """Starts writing `state`; the caller may donate its buffers as soon as this returns.

        Args:
          state: The state to write. Nothing is written if its step already has a checkpoint.
          figures: The figures of an evaluation of this very state, by which `keep_best` compares.

        Raises:
          UserError: if `figures` lacks the figure `keep_best`, or if this checkpoint or the
            previous one could not be written, for example because the disk is full. Earlier
            checkpoints are intact.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        if figures and self._keep_best and self._keep_best not in figures:
            raise UserError(
                f"keep_best={self._keep_best!r} is no figure of the evaluation: it gives "
                f"{', '.join(sorted(figures))}"
            )
        params, rest = _split(state)
        with self._write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(params), rest=ocp.args.PyTreeSave(rest)
                ),
                metrics=dict(figures) if figures and self._keep_best else None,
            )

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # TensorStore raises ValueError for a full disk.
            with contextlib.suppress(OSError, ValueError):
                self._manager.wait_until_finished()  # Further failures have the same cause.
            self._manager.reload()
            good = self.latest_step
            raise UserError(
                f"cannot write a checkpoint to {self._manager.directory}: {_reason(error)}. "
                + (
                    "No checkpoint was written before; once this is mended, the same command "
                    "starts from the beginning."
                    if good is None
                    else f"That of step {good} is intact; once this is mended, the same command "
                    "goes on from there."
                )
            ) from error

    def restore(self, like: TrainState) -> TrainState:
        """The newest state on disk, in the shardings of `like`; `like` itself if none is on disk.

        Raises:
          UserError: if the names, shapes or types on disk differ from those of `like`. Orbax by
            itself would cast another type in silence.
        """
        step = self.latest_step
        if step is None:
            return like
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _split(like)
        )
        where = f"{self._manager.directory}/{_PREFIX}_{step}"
        stored = self._manager.item_metadata(step)
        for item, expected in zip(_ITEMS, abstract, strict=True):
            _check_same(stored[item].tree, expected, where)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    item: ocp.args.PyTreeRestore(
                        tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
                    )
                    for item, tree in zip(_ITEMS, abstract, strict=True)
                }
            ),
        )
        return _join(restored["params"], restored["rest"], arrays(like.batch_stats))


def load_params(workdir: str | os.PathLike) -> dict[str, Any]:
    """The parameters of the newest checkpoint as NumPy arrays, in the types that are on disk.

    Raises:
      UserError: if `workdir` holds no checkpoint.
    """
    path = epath.Path(workdir).absolute()
    with _open(path, create=False) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"no checkpoint in {path}: expected {path}/{_PREFIX}_<step>")
        names = manager.item_metadata(step)["params"].tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        args = ocp.args.Composite(params=ocp.args.PyTreeRestore(restore_args=as_numpy))
        return manager.restore(step, args=args)["params"]


def stored_steps(workdir: str | os.PathLike, keep_best: str | None) -> tuple[list[int], int | None]:
    """The steps of all checkpoints in order, and the step of the best one by `keep_best`.

    The second value is None if `keep_best` is None or no best checkpoint was kept.
    """
    path = epath.Path(workdir).absolute()
    with _open(path, create=False, **_preservation(0, keep_best)) as manager:
        steps = sorted(manager.all_steps())
        return steps, manager.best_step() if keep_best and steps else None


def _preservation(keep: int, keep_best: str | None) -> dict[str, Any]:
    policies = ocp.checkpoint_managers
    newest = policies.LatestN(keep or None)
    if not keep_best:
        return {"preservation_policy": newest}

    def figure(figures: Mapping[str, float]) -> float:
        return figures[keep_best]

    least = "loss" in keep_best
    best = policies.BestN(
        get_metric_fn=figure, reverse=least, n=1, keep_checkpoints_without_metrics=False
    )
    return {
        "preservation_policy": policies.AnyPreservationPolicy([newest, best]),
        "best_fn": figure,
        "best_mode": "min" if least else "max",
    }


def _reason(error: BaseException) -> str:
    """The innermost cause that TensorStore's message names, without the error codes around it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0].partition(" [os_error_code")[0].rpartition(": ")[2]


def _is_news(record: std_logging.LogRecord) -> bool:
    """Whether a log record should be shown: False for two kinds of records of Orbax.

    Orbax logs every error that it also raises, with a traceback for each of its threads. And it
    warns about every checkpoint without figures, although a run evaluates only at some steps.
    """
    return "orbax" not in record.pathname or not (
        record.levelno >= std_logging.ERROR or "did not provide metrics" in record.getMessage()
    )


@functools.cache
def _mute_late_writes() -> None:
    """Hides the tracebacks that TensorStore prints after a failed write.

    When one write fails, Orbax closes its event loop. TensorStore's other writes end later, report
    to the closed loop, and print a traceback each, which no `except` clause can catch.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _open(path: epath.Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        path,
        options=ocp.CheckpointManagerOptions(step_prefix=_PREFIX, **options),
        item_names=_ITEMS,
        item_handlers={item: ocp.PyTreeCheckpointHandler() for item in _ITEMS},
    )


def _split(state: TrainState) -> tuple[Any, dict[str, Any]]:
    """The items 'params' and 'rest' of a checkpoint.

    'params' holds the moving average if the run keeps one; the trained parameters are then stored
    in 'rest'.
    """
    rest = {"step": state.step, "opt_state": state.opt_state}
    if state.ema is not None:
        rest["trained_params"] = named(state.variables)
    return state.best_params, rest


def _join(params: Any, rest: dict[str, Any], statistics: Collection[str]) -> TrainState:
    best, averaged = collections(params, statistics), "trained_params" in rest
    trained = collections(rest["trained_params"], statistics) if averaged else best
    return TrainState(
        rest["step"],
        trained["params"],
        rest["opt_state"],
        ema=best if averaged else None,
        batch_stats=trained["batch_stats"],
    )


def _refuse_files(path: epath.Path) -> None:
    """Raises UserError for checkpoints of the original code, which are files and not folders."""
    if not path.exists():
        return
    for entry in path.glob(f"{_PREFIX}_*"):
        if entry.is_file():
            raise UserError(
                f"{entry} is a checkpoint file of the original code, which this run cannot "
                "continue; use another --workdir"
            )


def _check_same(stored: Any, expected: Any, where: str) -> None:
    def facts(tree: Any) -> dict[str, tuple]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        # Orbax stores tuples and named tuples as lists and dicts: compare paths by their names.
        return {
            "/".join(
                str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path
            ): (
                tuple(leaf.shape),
                str(leaf.dtype),
            )
            for path, leaf in leaves
        }

    got, want = facts(stored), facts(expected)
    if got == want:
        return
    differing = sorted(got.items() ^ want.items())
    shown = ", ".join(
        f"{name} {'on disk' if got.get(name) == fact else 'expected'} {fact[1]}{list(fact[0])}"
        for name, fact in differing[:6]
    )
    logging.info("all differences: %s", differing)
    raise UserError(
        f"{where} holds another state than this config makes: {shown}"
        f"{', …' if len(differing) > 6 else ''}. Use the config of that run, or another --workdir."
    )

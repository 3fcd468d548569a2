"""Checkpoints of a run, `workdir/checkpoint_N`. Training calls Orbax in this module only.

A checkpoint has three items: 'params', which other commands read without the rest, 'rest', which
only training needs, and 'history', the JSON of what the run remembers of its course. Running
statistics are stored among the parameters, see `vit_jax.variables`.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.train import orbax_noise
from vit_jax.train.checkpoint_items import (
    ITEMS,
    PREFIX,
    TRAINED,
    check_same,
    join,
    refuse_files,
    split,
)
from vit_jax.train.mirror import mirror_of, skeleton
from vit_jax.train.state import TrainState

_HISTORY = "history"
_LARGE = 2**20  # bytes
_FIGURES = "metrics"  # the name under which Orbax keeps the figures of an evaluation


class Checkpoints:
    """The checkpoints of one workdir, written in the background.

    This is a context manager that waits for the last write when it is left. A half-written
    checkpoint has a temporary name and is therefore never read.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        keep: int = 0,
        keep_best: str | None = None,
        keep_every: int = 0,
    ):
        """Opens the checkpoints of `workdir`.

        Args:
          workdir: The folder of the run, or the `Mirror` of its address.
          keep: The number of newest checkpoints to keep; 0 keeps all.
          keep_best: The name of an evaluation figure. The checkpoint with the best value is kept
            too: the smallest value if the last part of the name contains 'loss', the greatest
            otherwise. Checkpoints that were saved without that figure are not compared.
          keep_every: Checkpoints of the multiples of this step are kept for good; 0 for none.

        Raises:
          UserError: if the workdir holds checkpoint files of the original code.
        """
        path = epath.Path(workdir).absolute()
        refuse_files(path)
        self._mirror = mirror_of(workdir)
        self._keep_best = keep_best or None
        orbax_noise.mute()
        self._manager = _open(
            path,
            alone=self._mirror is not None,
            cleanup_tmp_directories=True,
            **_preservation(keep, self._keep_best, keep_every),
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        try:
            self.wait()
        finally:
            self._manager.close()

    def wait(self) -> None:
        """Waits until every checkpoint that was asked for is on disk, or in the store of the run.

        Raises:
          UserError: if the last checkpoint could not be written.
        """
        with self._write_errors():
            self._manager.wait_until_finished()
        if self._mirror:
            self._mirror.push()

    @property
    def _where(self) -> str:
        """The place of the checkpoints, for messages."""
        return str(self._mirror or self._manager.directory)

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

    def save(
        self,
        state: TrainState,
        figures: Mapping[str, float] | None = None,
        history: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts writing `state`; the caller may donate its buffers as soon as this returns.

        Args:
          state: The state to write. Nothing is written if its step already has a checkpoint.
          figures: The figures of an evaluation of this very state, by which `keep_best` compares.
          history: What the run remembers of its course, as JSON can hold it.

        Raises:
          UserError: if this checkpoint or the previous one could not be written, for example
            because the disk is full. Earlier checkpoints are intact.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        items = split(state)
        if self._mirror:
            self._mirror.push()  # An earlier checkpoint that the store has not taken is said now.
            # Other processes do not see this folder, and the first one writes all of the state.
            items = multihost_utils.process_allgather(items, tiled=True) if _several() else items
        params, rest = items
        with self._write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(params),
                    rest=ocp.args.PyTreeSave(rest),
                    **{_HISTORY: ocp.args.JsonSave(dict(history or {}))},
                ),
                metrics=dict(figures) if figures and self._keep_best in figures else None,
            )

    def add_figures(self, figures: Mapping[str, float]) -> None:
        """Adds figures to the newest checkpoint, if it was saved without the figure `keep_best`.

        Raises:
          UserError: if they cannot be written.
        """
        step = self.latest_step
        if step is None or self._keep_best not in figures:
            return
        if self._manager.metrics(step) is not None:
            return
        processes = _processes(alone=self._mirror is not None)
        handler = ocp.JsonCheckpointHandler(_FIGURES, multiprocessing_options=processes)
        with (
            self._write_errors(),
            ocp.Checkpointer(handler, multiprocessing_options=processes) as writer,
        ):
            writer.save(_item(self._manager, step, _FIGURES), args=ocp.args.JsonSave(dict(figures)))
        self._manager.reload()
        if self._mirror:
            self._mirror.push()

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
                f"cannot write a checkpoint to {self._where}: {orbax_noise.reason(error)}. "
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
        if self._mirror:
            self.wait()
            if _several():  # The first process has copied what the others read now.
                multihost_utils.sync_global_devices(f"checkpoint {step} is in the store")
            self._mirror.fill(step)
        return _restore(self._manager, step, like, self._where)

    def history(self) -> dict[str, Any]:
        """The history in the newest checkpoint; {} before the first one, or if it has none."""
        step = self.latest_step
        return {} if step is None else _history(self._manager, step)


def restore_step(workdir: stores.Location, step: int, like: TrainState) -> TrainState:
    """The state of one checkpoint of a run, in the shardings of `like`; the run is only read.

    Raises:
      UserError: as `Checkpoints.restore`.
    """
    with _reading(workdir, step) as manager:
        return _restore(manager, step, like, str(workdir))


def history_of(workdir: stores.Location, step: int) -> dict[str, Any]:
    """The history in one checkpoint of a run; {} if it has none."""
    with _reading(workdir, step) as manager:
        return _history(manager, step)


@contextlib.contextmanager
def _reading(workdir: stores.Location, step: int) -> Iterator[ocp.CheckpointManager]:
    """Orbax's manager of a run that is only read, with the arrays of one checkpoint."""
    with (
        skeleton(workdir, step) as folder,
        _open(
            epath.Path(folder).absolute(), alone=stores.is_address(workdir), create=False
        ) as manager,
    ):
        yield manager


def _history(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    if not _item(manager, step, _HISTORY).exists():  # It was saved before there was a history.
        return {}
    args = ocp.args.Composite(**{_HISTORY: ocp.args.JsonRestore()})
    return manager.restore(step, args=args)[_HISTORY]


def _item(manager: ocp.CheckpointManager, step: int, name: str) -> epath.Path:
    return epath.Path(manager.directory) / f"{PREFIX}_{step}" / name


def _restore(manager: ocp.CheckpointManager, step: int, like: TrainState, where: str) -> TrainState:
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), split(like)
    )
    stored = manager.item_metadata(step)
    for item, expected in zip(ITEMS, abstract, strict=True):
        check_same(stored[item].tree, expected, f"{where}/{PREFIX}_{step}")
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            **{
                item: ocp.args.PyTreeRestore(
                    tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
                )
                for item, tree in zip(ITEMS, abstract, strict=True)
            }
        ),
    )
    return join(restored["params"], restored["rest"], like)


def load_params(
    workdir: stores.Location, step: int | None = None, *, trained: bool = False
) -> dict[str, Any]:
    """The parameters of a checkpoint as NumPy arrays, in the types that are on disk.

    Args:
      workdir: The folder of the run, or its address.
      step: The step of the checkpoint; None for the newest.
      trained: Whether those that are trained are wanted where the run keeps their moving average.

    Raises:
      UserError: if `workdir` holds no checkpoint.
    """
    if step is None:
        steps, _ = stored_steps(workdir, None)
        if not steps:
            raise UserError(f"no checkpoint in {workdir}: expected {workdir}/{PREFIX}_<step>")
        step = steps[-1]
    with _reading(workdir, step) as manager:
        stored = manager.item_metadata(step)
        averaged = trained and TRAINED in stored["rest"].tree
        item, names = "params", stored["params"].tree
        if averaged:
            item, names = "rest", {TRAINED: stored["rest"].tree[TRAINED]}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        args = ocp.args.PyTreeRestore(names, restore_args=as_numpy, partial_restore=True)
        found = manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        return found[TRAINED] if averaged else found


def stored_steps(workdir: str | os.PathLike, keep_best: str | None) -> tuple[list[int], int | None]:
    """The steps of all checkpoints in order, and the step of the best one by `keep_best`.

    The second value is None if `keep_best` is None or no best checkpoint was kept.
    """
    with (
        skeleton(workdir) as folder,
        _open(
            epath.Path(folder).absolute(), create=False, **_preservation(0, keep_best)
        ) as manager,
    ):
        steps = sorted(manager.all_steps())
        return steps, manager.best_step() if keep_best and steps else None


def _preservation(keep: int, keep_best: str | None, keep_every: int = 0) -> dict[str, Any]:
    policies = ocp.checkpoint_managers
    kept: list[Any] = [policies.LatestN(keep or None)]
    if keep_every:
        kept.append(policies.EveryNSteps(keep_every))
    if not keep_best:
        return {"preservation_policy": policies.AnyPreservationPolicy(kept)}

    least = "loss" in keep_best.rpartition("/")[2]

    def figure(figures: Mapping[str, float]) -> float:
        # A run may have named another figure when it saved the checkpoint.
        return figures.get(keep_best, math.inf if least else -math.inf)

    best = policies.BestN(
        get_metric_fn=figure, reverse=least, n=1, keep_checkpoints_without_metrics=False
    )
    return {
        "preservation_policy": policies.AnyPreservationPolicy([*kept, best]),
        "best_fn": figure,
        "best_mode": "min" if least else "max",
    }


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask whether the run is to stop.

    The run itself asks, see `Preemption`. JAX knows one count of such questions: after Orbax has
    asked with the number of a step, processes could agree to stop at a question long past, and
    would never stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _open(path: epath.Path, alone: bool = False, **options: Any) -> ocp.CheckpointManager:
    """Orbax's manager of a folder, which all processes share, or which is this one's `alone`."""
    processes = _processes(alone)
    if alone and _several():
        options["create"] = False  # Orbax makes only folders that are shared.
    return _Manager(
        path,
        options=ocp.CheckpointManagerOptions(
            step_prefix=PREFIX, multiprocessing_options=processes, **options
        ),
        item_names=(*ITEMS, _HISTORY),
        item_handlers={
            **{
                item: ocp.PyTreeCheckpointHandler(
                    multiprocessing_options=processes, type_handler_registry=_ways_to_write()
                )
                for item in ITEMS
            },
            _HISTORY: ocp.JsonCheckpointHandler(multiprocessing_options=processes),
        },
    )


def _ways_to_write() -> ocp.type_handlers.TypeHandlerRegistry:
    """How Orbax writes arrays: those that devices hold copies of in parts, if the parts are large.

    Each device cuts its part out by a program of its own. For a part of every small array, the
    first checkpoint would take hundreds of programs, and far longer to compile them than to write.
    """
    types = ocp.type_handlers
    return types.create_type_handler_registry(
        (np.number, types.ScalarHandler()),
        (np.ndarray, types.NumpyHandler()),
        (jax.Array, types.ArrayHandler(min_slice_bytes_for_replica_parallel=_LARGE)),
    )


def _processes(alone: bool) -> ocp.options.MultiprocessingOptions:
    """The processes that Orbax writes with: all of them, or this one `alone`."""
    if not (alone and _several()):
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )


def _several() -> bool:
    return jax.process_count() > 1

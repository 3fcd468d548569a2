"""A trace of some steps, for TensorBoard's profiler and Perfetto."""

import os
from collections.abc import Sequence
from typing import Any, Self

import jax

from vit_jax.errors import UserError


class Profiler:
    """Traces the steps `first` to `last` into `<workdir>/plugins/profile`. A context manager.

    The first steps compile; a trace that starts at step 3 or later shows what the others cost.

    Args:
      workdir: Where TensorBoard looks: `tensorboard --logdir WORKDIR`, tab Profile.
      steps: (first, last), both traced, counted from 1; empty for none.

    Raises:
      UserError: for anything else.
    """

    def __init__(self, workdir: str | os.PathLike, steps: Sequence[int] | None):
        self._workdir = os.fspath(workdir)
        self._first, self._last = check(steps)
        self._tracing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call it before the step is dispatched."""
        # Not `==`: a run may go on from a checkpoint in the middle of the range.
        if self._first <= step <= self._last and not self._tracing:
            jax.profiler.start_trace(self._workdir)
            self._tracing = True

    def after(self, step: int, result: Any) -> None:
        """Call it with what the step returned (any of its arrays): the trace ends once it is."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()


def check(steps: Sequence[int] | None) -> tuple[int, int]:
    """(first, last) of `config.profile`; (0, -1), which holds no step, where it is empty."""
    if not steps:
        return 0, -1
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    if len(steps) != 2 or not whole or not 1 <= steps[0] <= steps[1]:
        raise UserError(
            f"profile={tuple(steps)}; expected (first_step, last_step), counted from 1, or ()"
        )
    return steps[0], steps[1]

"""Traces some training steps for TensorBoard's profiler and Perfetto."""

import os
from collections.abc import Sequence
from typing import Any, Self

import jax

from vit_jax.errors import UserError


class Profiler:
    """A context manager that traces a range of steps into `<workdir>/plugins/profile`.

    The first steps include compilation, so a trace should start at step 3 or later.

    Args:
      workdir: The folder of the run; `tensorboard --logdir WORKDIR` shows the trace in its tab
        Profile.
      steps: (first, last), counted from 1 and both traced; empty to trace nothing.

    Raises:
      UserError: if `steps` is not such a pair.
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
        """Starts the trace if `step` is in the range; to be called before dispatching the step."""
        # The whole range is compared, because a resumed run may start in the middle of the range.
        if self._first <= step <= self._last and not self._tracing:
            jax.profiler.start_trace(self._workdir)
            self._tracing = True

    def after(self, step: int, result: Any) -> None:
        """Ends the trace after the last step of the range.

        Args:
          step: The step that was dispatched.
          result: Arrays that the step returned; the trace ends when they are computed.
        """
        if self._tracing and step >= self._last:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()


def check(steps: Sequence[int] | None) -> tuple[int, int]:
    """(first, last) of `config.profile`, or (0, -1), a range without steps, if it is empty.

    Raises:
      UserError: if `steps` is neither empty nor two whole numbers with 1 <= first <= last.
    """
    if not steps:
        return 0, -1
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    if len(steps) != 2 or not whole or not 1 <= steps[0] <= steps[1]:
        raise UserError(
            f"profile={tuple(steps)}; expected (first_step, last_step), counted from 1, or ()"
        )
    return steps[0], steps[1]

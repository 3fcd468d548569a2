"""Traces some training steps for TensorBoard's profiler and Perfetto."""

import os
import time
from collections.abc import Sequence

import jax

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.train.actions import Action, Step

# A file of this name in the workdir asks for a trace of the next steps, so many of them. The file
# is looked for every so many seconds, because that takes time where the workdir is far away.
_ASKS, _STEPS, _EVERY = "profile", 5, 20.0


class Profiler(Action):
    """Traces a range of steps into `<workdir>/plugins/profile`.

    The first steps include compilation, so a trace should start at step 3 or later. The first
    process also traces five steps whenever it finds the file `profile` in the workdir, which it
    removes.

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
        # As text, a workdir is its address, also where a local folder takes its place.
        first = jax.process_index() == 0
        self._asks = stores.path(stores.join(str(workdir), _ASKS)) if first else None
        self._looked = time.monotonic()

    def __exit__(self, *exc_info: object) -> None:
        self._stop()

    def before(self, number: int) -> None:
        """Starts the trace if the step `number` is in the range."""
        if self._asked():
            self._first, self._last = number, number + _STEPS - 1
        # The whole range is compared, because a resumed run may start in the middle of the range.
        if self._first <= number <= self._last and not self._tracing:
            jax.profiler.start_trace(self._workdir)
            self._tracing = True

    def after(self, step: Step) -> None:
        """Ends the trace after the last step of the range, when its results are computed."""
        if self._tracing and step.number >= self._last:
            jax.block_until_ready(step.scalars)
            self._stop()

    def _asked(self) -> bool:
        """Whether somebody wants a trace from now on."""
        now = time.monotonic()
        if self._asks is None or self._tracing or now - self._looked < _EVERY:
            return False
        self._looked = now
        try:
            with stores.as_os_errors():
                if not self._asks.exists():
                    return False
                self._asks.unlink()
        except OSError:  # Nobody does, or the file cannot be removed and would ask for ever.
            return False
        return True

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


def profile_server(port: str | None) -> None:
    """Lets TensorBoard's Capture Profile trace this process through a port; None for no port.

    Process I of a run uses the port that comes I after it, because a host may have several.

    Raises:
      UserError: for what is no port, or one that cannot be had.
    """
    if not port:
        return
    number = int(port) if port.isdecimal() else 0
    if not 0 < number < 2**16:
        raise UserError(f"VIT_JAX_PROFILE_PORT={port}; expected a port, 1 to 65535")
    try:
        jax.profiler.start_server(number + jax.process_index())
    except (RuntimeError, ValueError) as error:
        raise UserError(f"VIT_JAX_PROFILE_PORT={port}: {error}") from error

"""Which process of a run holds up the others."""

import jax
import numpy as np
from jax.experimental import multihost_utils

# A process is named when the others could be so much faster without it, and with this share of a
# step's time.
_SHARE = 0.1


def slowest(data_wait_seconds: float) -> tuple[int, float, float] | None:
    """The process that waits longest for its data; None in a run of one process.

    All processes must call this together.

    Args:
      data_wait_seconds: The seconds that this process waited for data, per step.

    Returns:
      Its number, its seconds, and the median of all.
    """
    if jax.process_count() == 1:
        return None
    waits = multihost_utils.process_allgather(np.asarray(data_wait_seconds, np.float32))
    worst = int(np.argmax(waits))
    return worst, float(waits[worst]), float(np.median(waits))


def sentence(name: str, worst: float, median: float, step_seconds: float) -> str | None:
    """A sentence about the slowest process; None if it is not much slower than the others."""
    if worst - median < _SHARE * step_seconds:
        return None
    return (
        f"{name} holds up the others: it waits {worst:.2g} s a step for its data (median "
        f"{median:.2g} s; a step takes {step_seconds:.2g} s)"
    )

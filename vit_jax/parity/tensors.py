"""How far two sets of tensors are apart, parameter by parameter. NumPy only."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vit_jax.parity.figures import max_abs

# A tensor whose numbers are all tiny, such as the gradient of a key's bias, which is zero but for
# rounding, is measured by this share of the largest number of all tensors.
FLOOR = 1e-3


@dataclasses.dataclass(frozen=True)
class TensorError:
    """How far one parameter, or its gradient, lies from the reference's.

    Attributes:
      ours, theirs: Its name on either side.
      error: max |ours - reference| / max |reference|, see `tensor_errors`.
    """

    ours: str
    theirs: str
    error: float


def tensor_errors(
    ours: Mapping[str, np.ndarray], reference: Mapping[str, tuple[str, np.ndarray]]
) -> tuple[TensorError, ...]:
    """The error of every tensor, the worst first; NaN is worst of all.

    max |ours - reference| divided by max |reference|, or by `FLOOR` times the largest number of
    all the reference's tensors where that is more.

    Args:
      ours: By name.
      reference: By our name, (their name, the reference's numbers in our shape).
    """
    floor = FLOOR * max((float(np.abs(x).max()) for _, x in reference.values()), default=0.0)
    found = []
    for name, (theirs, expected) in reference.items():
        scale = max(float(np.abs(expected).max()), floor)
        difference = max_abs(ours[name], expected)
        error = 0.0 if difference == 0 else difference / scale if scale else float("inf")
        found.append(TensorError(name, theirs, error))
    return tuple(sorted(found, key=lambda x: (not np.isnan(x.error), -x.error)))


def worst(errors: tuple[TensorError, ...]) -> float:
    """The largest error; NaN if any is."""
    return errors[0].error if errors else 0.0


def relative(ours: float, reference: float) -> float:
    """|ours - reference| / |reference|."""
    if ours == reference:
        return 0.0
    return abs(ours - reference) / abs(reference) if reference else float("inf")

"""Interpolation as one matrix an axis: NumPy only, exact in float64."""

import functools
from collections.abc import Callable

import numpy as np

Kernel = Callable[[np.ndarray], np.ndarray]


def linear(x: np.ndarray) -> np.ndarray:
    """The tent: 1 at 0, 0 from distance 1 on."""
    return np.maximum(1 - np.abs(x), 0)


def keys_cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys 1981 ("Cubic convolution interpolation"), equation 4 for general a."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def half_pixel_weights(old: int, new: int, kernel: Kernel, offset: float = 0.0) -> np.ndarray:
    """[new, old]: half-pixel centres, no antialiasing, the border repeated, as PyTorch does.

    Args:
      kernel: Zero from distance 2 on.
      offset: Added to `new` where the scale is computed, as a code does that gives PyTorch a
        `scale_factor` of (new + offset) / old lest it round to too few points.
    """
    position = (np.arange(new) + 0.5) * (old / (new + offset)) - 0.5
    taps = np.floor(position).astype(int)[:, None] + np.arange(-1, 3)
    matrix = np.zeros((new, old))
    rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
    np.add.at(matrix, (rows, taps.clip(0, old - 1)), kernel(position[:, None] - taps))
    return matrix


def antialiased_weights(old: int, new: int, kernel: Kernel) -> np.ndarray:
    """[new, old]: half-pixel centres, cut off at the border; wider kernels where it shrinks."""
    scale = old / new
    position = (np.arange(new) + 0.5) * scale - 0.5
    return normalised(position / max(scale, 1.0), old, kernel, max(scale, 1.0))


def normalised(position: np.ndarray, old: int, kernel: Kernel, widen: float = 1.0) -> np.ndarray:
    """[new, old]: the kernel around each of `new` positions, in rows whose sum is 1.

    Args:
      position: In units of `widen` points.
      widen: How many points of the old the kernel's unit is.
    """
    weights = kernel(position[:, None] - np.arange(old) / widen)
    return weights / weights.sum(axis=1, keepdims=True)


torch_bicubic = functools.partial(keys_cubic, a=-0.75)

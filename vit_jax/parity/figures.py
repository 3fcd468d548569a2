"""What is measured when two implementations run on the same weights and images. NumPy only."""

import numpy as np

# Bars on `relative_error`. Two float64 runs of one formula differ by some 1e-14, and the smallest
# slip in a formula that we know of (an epsilon) by 1e-7: the bar lies between.
FLOAT64_BAR = 1e-9
FLOAT32_BAR = 2e-5
NOISE_FACTOR = 3


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """max |ours - reference| / std(reference), the reference in float64.

    Where the reference is constant (a head of zeros) there is no scale: 0 if ours is the same,
    else infinite. NaN on either side gives NaN, which is below no bar.
    """
    difference = max_abs(ours, reference)
    scale = float(np.std(reference))
    if scale == 0:
        return 0.0 if difference == 0 else float("inf") if difference > 0 else float("nan")
    return difference / scale


def max_abs(ours: np.ndarray, reference: np.ndarray) -> float:
    """max |ours - reference|; ValueError where the shapes differ, which nothing may broadcast."""
    if ours.shape != reference.shape:
        raise ValueError(f"shapes differ: ours {ours.shape}, the reference's {reference.shape}")
    return float(np.abs(ours.astype(np.float64) - reference.astype(np.float64)).max())


def float32_bar(noise: float) -> float:
    """What float32 may differ by, given the reference's own float32 `noise`."""
    return max(FLOAT32_BAR, NOISE_FACTOR * noise)


def top1_agreement(ours: np.ndarray, reference: np.ndarray) -> float:
    """Share of rows whose largest logit is the same class."""
    return float(np.mean(ours.argmax(-1) == reference.argmax(-1)))

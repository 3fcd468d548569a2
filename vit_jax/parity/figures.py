"""What is measured when two implementations run on the same weights and images. NumPy only."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.families.family import Difference

if TYPE_CHECKING:
    from vit_jax.parity.gradients import Gradients
    from vit_jax.parity.pixels import Pixels
    from vit_jax.parity.training import Training

# Bars on `relative_error`. Two float64 runs of one formula differ by some 1e-14, and the smallest
# slip in a formula that we know of (an epsilon) by 1e-7: the bar lies between.
FLOAT64_BAR = 1e-9
FLOAT32_BAR = 2e-5
NOISE_FACTOR = 3


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """max |ours - reference| / std(reference), the reference in float64.

    A constant reference (of a head of zeros) has no scale: the error is then 0 if ours is the same,
    and infinite otherwise. NaN on either side gives NaN, which is below no bar.
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


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far one output lies from the reference's, as `relative_error` but for `max_abs`.

    Attributes:
      ours, theirs: The module that gave it, on either side.
      error: Both sides in float64: what the formulas differ by.
      max_abs: The same, not divided by the reference's standard deviation.
      error_float32: Ours in float32 against the reference in float64.
      noise_float32: The reference in float32 against itself in float64.
    """

    ours: str
    theirs: str
    error: float
    max_abs: float
    error_float32: float
    noise_float32: float

    @property
    def same(self) -> bool:
        """Whether the formulas are the same. NaN is not."""
        return self.error <= FLOAT64_BAR


@dataclasses.dataclass(frozen=True)
class Setting:
    """The comparison with one build of the reference.

    Attributes:
      differences: What this build computes otherwise than ours, as far as it is known.
      logits: How far the two outputs are apart.
      blocks: Along the way, first to last.
      top1_agreement: Share of images with the same first class, in float64.
    """

    differences: tuple[Difference, ...]
    logits: Drift
    blocks: tuple[Drift, ...]
    top1_agreement: float

    @property
    def first_drift(self) -> Drift | None:
        """The first output that is not the same, the logits last; None if all are."""
        return next((drift for drift in (*self.blocks, self.logits) if not drift.same), None)

    @property
    def verdict(self) -> str:
        """'same' if every output is, in float64, and float32 logits lie within its noise."""
        within = self.logits.error_float32 <= float32_bar(self.logits.noise_float32)
        return "same" if self.first_drift is None and within else "differs"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
      model: Name of ours.
      against: Name of the reference: 'timm', 'hf', …
      weights: Where the weights came from, in words.
      image_size: (height, width) in pixels.
      num_images: How many were compared.
      matched: With the reference's numerics made ours: the proof.
      as_shipped: With the reference as its users get it.
      notes: What is to be known of the weights.
      versions: The versions of everything that took part.
      gradients: Of every parameter, where these were asked for.
      training: Steps of an optimizer, where these were asked for.
      pixels: How images are prepared, where that was asked for.
    """

    model: str
    against: str
    weights: str
    image_size: tuple[int, int]
    num_images: int
    matched: Setting
    as_shipped: Setting
    notes: tuple[str, ...]
    versions: dict[str, str]
    gradients: "Gradients | None" = None
    training: "Training | None" = None
    pixels: "Pixels | None" = None

    @property
    def verdict(self) -> str:
        """'same' if the matched numerics are, and all else that was compared; or 'differs'."""
        verdicts = {x.verdict for x in (self.matched, *self.more.values())}
        return "same" if verdicts == {"same"} else "differs"

    @property
    def more(self) -> "dict[str, Gradients | Training | Pixels]":
        """What was compared beside the logits, by field."""
        found = {"gradients": self.gradients, "training": self.training, "pixels": self.pixels}
        return {name: x for name, x in found.items() if x is not None}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the verdicts included; what is not finite is None."""
        fields: dict[str, Any] = dataclasses.asdict(self)
        fields["verdict"] = self.verdict
        for name, setting in (("matched", self.matched), ("as_shipped", self.as_shipped)):
            drift = setting.first_drift
            fields[name]["differences"] = [d._asdict() for d in setting.differences]
            fields[name]["first_drift"] = drift and drift.ours
            fields[name]["verdict"] = setting.verdict
        for name, x in self.more.items():
            fields[name] |= x.summary
        return _finite(fields)


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(x) for key, x in value.items()}
        case list() | tuple():
            return [_finite(x) for x in value]
        case float() if not math.isfinite(value):
            return None
    return value

"""The preprocessing of images that a model needs, as data; no code here touches pixels."""

import dataclasses
import math
from typing import Any, Literal, Self

from vit_jax.errors import UserError


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that is the side of a square, or both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Evaluation preprocessing of one model.

    The defaults are the official code's: squash the image to `size` × `size`, bilinear without
    antialiasing, and map [0, 255] to [-1, 1]. An image has as many channels as `mean` has numbers.

    Attributes:
      size: What the model gets, in pixels: the side of a square, or (height, width).
      crop: Share of the resized image's side that the central crop keeps (timm's `crop_pct`): the
        image is resized to `floor(size / crop)` first, see `before_crop`.
      resize: 'squash' ignores the aspect ratio; 'shortest' keeps it, and sets the shorter side;
        where `size` is no square, the side that is left shorter by it.
      method: Interpolation.
      antialias: Whether the kernel widens when shrinking: PIL does that, the official code not.
      mean, std: Per channel, in units of [0, 1] pixels: `(x / 255 - mean) / std`.
      truncate: Whether resized pixels are cut off to whole numbers before they are normalised, as
        LiT's code does.
    """

    size: int | tuple[int, int] = 224
    crop: float = 1.0
    resize: Literal["squash", "shortest"] = "squash"
    method: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    truncate: bool = False

    def __post_init__(self):
        if isinstance(self.size, tuple) and len(set(self.size)) == 1:
            object.__setattr__(self, "size", self.size[0])  # squares have one spelling

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) in pixels that the model gets."""
        return sides(self.size)

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.mean)

    def for_channels(self, channels: int) -> Self:
        """For images of another number of channels: each has the average mean and deviation."""
        if channels == self.channels:
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def before_crop(self, side: int) -> int:
        """Pixels to which a side is resized of which the central crop keeps `side`."""
        # A side of 9 and a crop of 9/14 must give 14, but rounding makes 9 / (9 / 14) less.
        return math.floor(side / self.crop + 1e-6)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Raises UserError for a field that is not ours."""
        names = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(fields.keys() - names):
            raise UserError(f"preprocessing has unknown fields {unknown}; known: {sorted(names)}")
        as_tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**as_tuples)

"""Transforms that cut out a random window of random shape and resize it."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from vit_jax.families.preprocess import sides
from vit_jax.input_pipeline import label_maps
from vit_jax.input_pipeline.chain import Record, generator
from vit_jax.input_pipeline.geometry import RESIZE, Size

Window = tuple[int, int, int, int]  # Top, left, height, width in pixels.


@dataclasses.dataclass(frozen=True)
class RandomWindow:
    """The parts that the two ways to draw a window share.

    Attributes:
      size: Side of the resized window in pixels, or its (height, width).
      area_min, area_max: Bounds of the window's share of the image's area.
      ratio_min, ratio_max: Bounds of width / height before rounding to pixels.
      method: Key of `RESIZE`.
    """

    size: Size
    area_min: float
    area_max: float
    ratio_min: float
    ratio_max: float
    method: str

    _ATTEMPTS: ClassVar[int]

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        image = record["image"]
        top, left, height, width = self.window(image.shape[0], image.shape[1], generator(rng, self))
        window = image[top : top + height, left : left + width]
        resized = RESIZE[self.method](window, *sides(self.size))
        return {**label_maps.cropped(record, top, left, height, width), "image": resized}

    def window(self, image_height: int, image_width: int, rng: np.random.Generator) -> Window:
        """Draws (top, left, height, width) in pixels."""
        for _ in range(self._ATTEMPTS):
            if (window := self._draw(image_height, image_width, rng)) is not None:
                return window
        return self._fallback(image_height, image_width)

    def _draw(self, image_height: int, image_width: int, rng: np.random.Generator) -> Window | None:
        """Draws a window once; None if the drawn window does not fit into the image."""
        raise NotImplementedError

    def _fallback(self, image_height: int, image_width: int) -> Window:
        """The window that is taken if no drawn window fits."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class InceptionCrop(RandomWindow):
    """A random window of random shape, resized to `size` × `size` (Szegedy et al. 2014).

    Draws as `tf.image.sample_distorted_bounding_box` does, with the arguments of the original
    ViT code and TensorFlow's defaults for the others: the aspect ratio is uniform (not
    log-uniform), and then the height is uniform between the smallest and the largest height that
    the area bounds and the image allow. After 100 failed tries the window is the whole image.
    TensorFlow never draws the last place that fits (see its kernel
    `sample_distorted_bounding_box_op.cc`), so that only windows of full height or width see the
    last row or column; this transform does the same.
    """

    area_min: float = 0.05
    area_max: float = 1.0
    ratio_min: float = 0.75
    ratio_max: float = 1.33
    method: str = "bilinear"

    _ATTEMPTS = 100

    def _draw(self, image_height: int, image_width: int, rng: np.random.Generator) -> Window | None:
        ratio = rng.uniform(self.ratio_min, self.ratio_max)
        if (shape := self._shape(image_height, image_width, ratio, rng)) is None:
            return None
        height, width = shape
        top = int(rng.integers(max(image_height - height, 1)))
        left = int(rng.integers(max(image_width - width, 1)))
        return top, left, height, width

    def _shape(
        self, image_height: int, image_width: int, ratio: float, rng: np.random.Generator
    ) -> tuple[int, int] | None:
        """A window's (height, width) of about this aspect ratio, or None if there is none."""
        smallest = self.area_min * image_height * image_width
        largest = self.area_max * image_height * image_width
        high = round(math.sqrt(largest / ratio))
        if round(high * ratio) > image_width:
            high = int((image_width + 0.5 - 1e-7) / ratio)
            high -= round(high * ratio) > image_width
        high = min(high, image_height)
        low = min(round(math.sqrt(smallest / ratio)), high)
        height = int(rng.integers(low, high + 1))
        # Rounding to pixels may violate a bound of the area; one pixel of height corrects that.
        if height * round(height * ratio) < smallest:
            height += 1
        if height * round(height * ratio) > largest:
            height -= 1
        width = round(height * ratio)
        fits = 0 < height <= image_height and 0 < width <= image_width
        return (height, width) if fits and smallest <= height * width <= largest else None

    def _fallback(self, image_height: int, image_width: int) -> Window:
        return 0, 0, image_height, image_width


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(RandomWindow):
    """A random window of random shape, resized to `size` × `size`, as torchvision and timm do it.

    The area is uniform, the aspect ratio is log-uniform, and every place is equally likely. After
    10 failed tries the window is the largest central window of an allowed aspect ratio.
    """

    area_min: float = 0.08
    area_max: float = 1.0
    ratio_min: float = 3 / 4
    ratio_max: float = 4 / 3
    method: str = "bicubic"

    _ATTEMPTS = 10

    def _draw(self, image_height: int, image_width: int, rng: np.random.Generator) -> Window | None:
        area = rng.uniform(self.area_min, self.area_max) * image_height * image_width
        ratio = math.exp(rng.uniform(math.log(self.ratio_min), math.log(self.ratio_max)))
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if not (0 < height <= image_height and 0 < width <= image_width):
            return None
        top = int(rng.integers(image_height - height + 1))
        left = int(rng.integers(image_width - width + 1))
        return top, left, height, width

    def _fallback(self, image_height: int, image_width: int) -> Window:
        height = min(image_height, round(image_width / self.ratio_min))
        width = min(image_width, round(image_height * self.ratio_max))
        return (image_height - height) // 2, (image_width - width) // 2, height, width

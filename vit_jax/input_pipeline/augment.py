"""The augmentations of the published recipes that change colours, apply policies or erase.

Every augmentation is, as in `transforms.py`, a frozen dataclass that draws from the random
generator it is given.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.input_pipeline import label_maps
from vit_jax.input_pipeline.chain import Record, generator
from vit_jax.input_pipeline.geometry import as_uint8
from vit_jax.input_pipeline.operations import SPACES, Level, Pixels, Space


def _pillow(record: Record) -> Pixels:
    return Image.fromarray(as_uint8(record["image"]))


def _with(record: Record, image: Pixels) -> Record:
    return {**record, "image": np.asarray(image)}


# --- policies ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies `num_ops` operations drawn from a space (Cubuk et al. 2019, arXiv:1909.13719).

    Every operation is drawn from all operations of the space, so that one may come twice.

    Attributes:
      num_ops: Number of operations that are applied one after the other.
      magnitude: Level of the operations, in units of the space: 0 to the space's `top`.
      space: Key of `SPACES`: the operations and the meaning of their levels.
      magnitude_std: Standard deviation of the normal distribution with mean `magnitude` that each
        operation's magnitude is drawn from (timm's `mstd`); 0 always gives `magnitude`.
    """

    num_ops: int = 2
    magnitude: float = 9.0
    space: str = "torchvision"
    magnitude_std: float = 0.0

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        rng, space, image = generator(rng, self), SPACES[self.space], _pillow(record)
        names = tuple(space.levels)
        for _ in range(self.num_ops):
            name = names[int(rng.integers(len(names)))]
            if rng.random() < space.probability:
                operation = space.draw(image.size, name, self._strength(space, rng), rng)
                if operation.moves:
                    record = label_maps.moved(record, image.size, operation.on_numbers)
                image = operation(image)
        return _with(record, image)

    def _strength(self, space: Space, rng: np.random.Generator) -> float:
        magnitude = self.magnitude
        if self.magnitude_std:
            magnitude = rng.normal(magnitude, self.magnitude_std)
        return min(max(magnitude, 0.0), max(space.top, self.magnitude)) / space.top


# The lines of a policy. A line holds the operations that are applied one after the other (two in
# the published policies), each as (operation, probability, level from 0 to 9).
Policy = tuple[tuple[tuple[str, float, int], ...], ...]

# The policy that AutoAugment found on ImageNet (Cubuk et al. 2018, arXiv:1805.09501, table 9).
IMAGENET_POLICY: Policy = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)


# The operations of torchvision's AutoAugment: those of its RandAugment, and `Invert`.
POLICY_SPACE = dataclasses.replace(
    SPACES["torchvision"], levels={**SPACES["torchvision"].levels, "Invert": Level()}, top=9
)


@dataclasses.dataclass(frozen=True)
class AutoAugment:
    """Applies one line of a fixed policy; the line is drawn anew for every image.

    The levels mean what they mean in torchvision.

    Attributes:
      policy: Lines to draw from. Each operation of the drawn line is applied with its own
        probability, at its own level.
    """

    policy: Policy = IMAGENET_POLICY

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        rng, space, image = generator(rng, self), POLICY_SPACE, _pillow(record)
        for name, probability, level in self.policy[int(rng.integers(len(self.policy)))]:
            if rng.random() < probability:
                image = space.apply(image, name, level / space.top, rng)
        return _with(record, image)


@dataclasses.dataclass(frozen=True)
class ThreeAugment:
    """Turns the image grey, solarizes it or blurs it (DeiT III, arXiv:2204.07118, section 3.1).

    The three changes are equally likely, and exactly one of them is applied.

    Attributes:
      threshold: Lowest pixel value, in [0, 255], that solarizing inverts.
      radius_min, radius_max: Bounds between which the standard deviation of the Gaussian blur is
        drawn uniformly, in pixels.
    """

    threshold: int = 128
    radius_min: float = 0.1
    radius_max: float = 2.0

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        rng, image = generator(rng, self), _pillow(record)
        choice = int(rng.integers(3))
        if choice == 0:
            image = image.convert("L").convert("RGB")
        elif choice == 1:
            image = ImageOps.solarize(image, self.threshold)
        else:
            radius = rng.uniform(self.radius_min, self.radius_max)
            image = image.filter(ImageFilter.GaussianBlur(radius))
        return _with(record, image)


# --- colour --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue in random order, as torchvision does it.

    Attributes:
      brightness, contrast, saturation: Strength v of each change, whose factor is drawn uniformly
        from [max(0, 1 - v), 1 + v]. A strength of 0 leaves the property as it is.
      hue: Strength h in [0, 0.5]; the shift of the hue is drawn uniformly from [-h, h], in turns of
        the colour circle.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        rng, image = generator(rng, self), _pillow(record)
        kinds = (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
            (None, self.hue),
        )
        for i in rng.permutation(len(kinds)):
            kind, most = kinds[i]
            if not most:
                continue
            if kind is None:
                image = shift_hue(image, rng.uniform(-most, most))
            else:
                image = kind(image).enhance(rng.uniform(max(0.0, 1 - most), 1 + most))
        return _with(record, image)


def shift_hue(image: Pixels, turns: float) -> Pixels:
    """Shifts the hue of an RGB image by a part of the colour circle, in Pillow's HSV space.

    Args:
      image: RGB image.
      turns: Shift in turns of the colour circle, in [-0.5, 0.5].

    Returns:
      A new RGB image of the same size.
    """
    hue, saturation, value = image.convert("HSV").split()
    shifted = (np.asarray(hue).astype(np.int32) + int(turns * 255)) % 256
    hue = Image.fromarray(shifted.astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


# --- erasing -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Fills a random window (Zhong et al. 2017, arXiv:1708.04896), as timm does it.

    Erasing is the last step, after the values are normalised: noise of mean 0 and standard
    deviation 1 then has the statistics of the other pixels.

    Attributes:
      probability: Probability that a window of an image is erased.
      area_min, area_max: Bounds between which the window's share of the image's area is drawn
        uniformly.
      ratio_min: Smallest aspect ratio; the aspect ratio is drawn log-uniformly between `ratio_min`
        and `1 / ratio_min`.
      noise: Whether the window is filled with standard normal noise, as DeiT fills it; False fills
        it with zeros.
    """

    probability: float = 0.25
    area_min: float = 0.02
    area_max: float = 1 / 3
    ratio_min: float = 0.3
    noise: bool = True

    _ATTEMPTS = 10

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        rng, image = generator(rng, self), record["image"]
        if rng.random() >= self.probability:
            return record
        window = self.window(image.shape[0], image.shape[1], rng)
        if window is None:
            return record
        top, left, height, width = window
        image = image.copy()
        part = image[top : top + height, left : left + width]
        part[:] = rng.standard_normal(part.shape, image.dtype) if self.noise else 0
        return {**record, "image": image}

    def window(
        self, image_height: int, image_width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int] | None:
        """Draws a window (top, left, height, width) in pixels, smaller than the image on both axes.

        Returns None if 10 draws in a row give no window that fits.
        """
        most = -math.log(self.ratio_min)
        for _ in range(self._ATTEMPTS):
            area = rng.uniform(self.area_min, self.area_max) * image_height * image_width
            ratio = math.exp(rng.uniform(-most, most))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < image_height and width < image_width:
                top = int(rng.integers(image_height - height + 1))
                left = int(rng.integers(image_width - width + 1))
                return top, left, height, width
        return None

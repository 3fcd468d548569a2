"""Colour, policies of operations, and erasing: the augmentations of the published recipes.

As in `transforms.py`, everything is a frozen dataclass that draws from the generator it is given.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

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
    """`num_ops` operations, each drawn from all of them (Cubuk et al. 2019, arXiv:1909.13719).

    Attributes:
      num_ops: Operations one after the other.
      magnitude: Their level, in units of the space.
      space: A key of `SPACES`.
      magnitude_std: Standard deviation of a normal draw about `magnitude` (timm's `mstd`).
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
                image = space.apply(image, name, self._strength(space, rng), rng)
        return _with(record, image)

    def _strength(self, space: Space, rng: np.random.Generator) -> float:
        magnitude = self.magnitude
        if self.magnitude_std:
            magnitude = rng.normal(magnitude, self.magnitude_std)
        return min(max(magnitude, 0.0), max(space.top, self.magnitude)) / space.top


# (operation, probability, level of 0 to 9), two after the other.
Policy = tuple[tuple[tuple[str, float, int], ...], ...]

# AutoAugment (Cubuk et al. 2018, arXiv:1805.09501), table 9: ImageNet.
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


# torchvision's operations and `Invert`, which RandAugment leaves out.
POLICY_SPACE = dataclasses.replace(
    SPACES["torchvision"], levels={**SPACES["torchvision"].levels, "Invert": Level()}, top=9
)


@dataclasses.dataclass(frozen=True)
class AutoAugment:
    """One line of a fixed list, drawn anew for every image; levels as in torchvision.

    Attributes:
      policy: The list; every operation of a line happens with its probability at its level.
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
    """Grey, solarized or blurred, each as likely (DeiT III, arXiv:2204.07118, section 3.1).

    Attributes:
      threshold: Values from here on are inverted by solarizing.
      radius_min, radius_max: Bounds of the blur's standard deviation in pixels, uniform.
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
    """Brightness, contrast, saturation and hue in random order, as torchvision does it.

    Attributes:
      brightness, contrast, saturation: v draws a factor uniformly from [max(0, 1 - v), 1 + v].
      hue: h in [0, 0.5] draws a shift uniformly from [-h, h], in turns of the colour circle.
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
    """Turns the hue by `turns` in [-0.5, 0.5] of the colour circle, in Pillow's HSV."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = (np.asarray(hue).astype(np.int32) + int(turns * 255)) % 256
    hue = Image.fromarray(shifted.astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


# --- erasing -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Fills a random window (Zhong et al. 2017, arXiv:1708.04896), as timm does it.

    Comes last, after normalising: noise of mean 0 and deviation 1 then looks like the rest.

    Attributes:
      probability: Of erasing at all.
      area_min, area_max: Bounds of the window's share of the image's area, uniform.
      ratio_min: The aspect ratio is log-uniform from this to its inverse.
      noise: Standard normal noise in every value, as DeiT has it; False fills with zeros.
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
        """Draws (top, left, height, width), smaller than the image; None after 10 failures."""
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

"""Colour, policies of operations, and erasing: the augmentations of the published recipes.

The operations are Pillow's, on whole values in [0, 255]; what differs between the published codes
is how an operation's level becomes its argument, and that is a table each (`SPACES`). As in
`transforms.py`, everything is a frozen dataclass that draws from the generator it is given.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.input_pipeline.transforms import Record, as_uint8, generator

Pixels = Image.Image
NEAREST = Image.Resampling.NEAREST
BILINEAR = Image.Resampling.BILINEAR
BICUBIC = Image.Resampling.BICUBIC


def _pillow(record: Record) -> Pixels:
    return Image.fromarray(as_uint8(record["image"]))


def _with(record: Record, image: Pixels) -> Record:
    return {**record, "image": np.asarray(image)}


# --- operations ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Canvas:
    """What geometric operations need besides their argument.

    Attributes:
      rng: For a place.
      fill: What comes in from outside the image.
      resample: Pillow's interpolation.
    """

    rng: np.random.Generator
    fill: tuple[int, int, int]
    resample: Image.Resampling


def _affine(image: Pixels, matrix: tuple[float, ...], canvas: Canvas) -> Pixels:
    """Pillow's convention: output place (x, y) shows input place `matrix` · (x, y, 1)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, canvas.resample, fillcolor=canvas.fill
    )


def _enhance(kind: Any) -> Callable[[Pixels, float, Canvas], Pixels]:
    return lambda image, factor, canvas: kind(image).enhance(factor)


def _posterize(image: Pixels, bits: float, canvas: Canvas) -> Pixels:
    # No bits at all is what two of the spaces end in; Pillow refuses it.
    return ImageOps.posterize(image, int(bits)) if bits >= 1 else image.point(lambda _: 0)


def _solarize_add(image: Pixels, addition: float, canvas: Canvas) -> Pixels:
    table = [min(255, value + int(addition)) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _cutout(image: Pixels, half: float, canvas: Canvas) -> Pixels:
    """Fills a square of side `2 · half` about a random pixel, cut at the border."""
    x, y = (int(canvas.rng.integers(side)) for side in image.size)
    half, image = int(half), image.copy()
    image.paste(canvas.fill, (max(x - half, 0), max(y - half, 0), x + half, y + half))
    return image


# Name in the AutoAugment paper -> what it does with (image, argument, canvas).
OPERATIONS: dict[str, Callable[[Pixels, float, Canvas], Pixels]] = {
    "Identity": lambda image, _, canvas: image,
    "AutoContrast": lambda image, _, canvas: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, canvas: ImageOps.equalize(image),
    "Invert": lambda image, _, canvas: ImageOps.invert(image),
    "Posterize": _posterize,
    # Values of the threshold or more are inverted.
    "Solarize": lambda image, threshold, canvas: ImageOps.solarize(image, math.ceil(threshold)),
    "SolarizeAdd": _solarize_add,
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Rotate": lambda image, degrees, canvas: image.rotate(
        degrees, canvas.resample, fillcolor=canvas.fill
    ),
    "ShearX": lambda image, level, canvas: _affine(image, (1, level, 0, 0, 1, 0), canvas),
    "ShearY": lambda image, level, canvas: _affine(image, (1, 0, 0, level, 1, 0), canvas),
    "TranslateX": lambda image, pixels, canvas: _affine(image, (1, 0, pixels, 0, 1, 0), canvas),
    "TranslateY": lambda image, pixels, canvas: _affine(image, (1, 0, 0, 0, 1, pixels), canvas),
    "Cutout": _cutout,
}


# --- levels --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Level:
    """An operation's argument at a strength of 0 to 1.

    Attributes:
      value: From (strength, the image's width or height in pixels) to a number.
      base: Added to it.
      signed: Whether the number counts negative half of the time.
    """

    value: Callable[[float, int], float] = lambda strength, side: 0.0
    base: float = 0.0
    signed: bool = False


@dataclasses.dataclass(frozen=True)
class Space:
    """The operations that one code draws from, and its levels.

    Attributes:
      levels: Of every operation.
      top: The magnitude that is strength 1.
      probability: With which a drawn operation is carried out.
      fill, resample: As in `Canvas`; `resample` is drawn from.
    """

    levels: Mapping[str, Level]
    top: float
    probability: float = 1.0
    fill: tuple[int, int, int] = (0, 0, 0)
    resample: tuple[Image.Resampling, ...] = (NEAREST,)

    def apply(self, image: Pixels, name: str, strength: float, rng: np.random.Generator) -> Pixels:
        """Carries out one operation."""
        level = self.levels[name]
        value = level.value(strength, image.size[1] if name == "TranslateY" else image.size[0])
        sign = -1 if level.signed and rng.random() < 0.5 else 1
        canvas = Canvas(rng, self.fill, self.resample[int(rng.integers(len(self.resample)))])
        return OPERATIONS[name](image, level.base + sign * value, canvas)


def _same(names: tuple[str, ...], level: Level) -> dict[str, Level]:
    return dict.fromkeys(names, level)


_ENHANCE = ("Color", "Contrast", "Brightness", "Sharpness")
_SHEAR, _TRANSLATE = ("ShearX", "ShearY"), ("TranslateX", "TranslateY")
_TURN = {
    "Rotate": Level(lambda s, _: 30 * s, signed=True),
    **_same(_SHEAR, Level(lambda s, _: 0.3 * s, signed=True)),
}
# 1 is 'no change': the further from it, in either direction, the stronger.
_ENHANCE_BOTH_WAYS = _same(_ENHANCE, Level(lambda s, _: 0.9 * s, base=1.0, signed=True))

SPACES = {
    # torchvision's, magnitudes 0 to 30.
    "torchvision": Space(
        {
            **_same(("Identity", "AutoContrast", "Equalize"), Level()),
            **_TURN,
            **_same(_TRANSLATE, Level(lambda s, side: int(150 / 331 * side * s), signed=True)),
            **_ENHANCE_BOTH_WAYS,
            "Posterize": Level(lambda s, _: 8 - round(4 * s)),
            "Solarize": Level(lambda s, _: round(255 * (1 - s), 3)),  # 85, not 85.00…01
        },
        top=30,
    ),
    # timm's `rand-…-inc1`, magnitudes 0 to 10; DeiT's.
    "timm": Space(
        {
            **_same(("AutoContrast", "Equalize", "Invert"), Level()),
            **_TURN,
            **_same(_TRANSLATE, Level(lambda s, side: 0.45 * side * s, signed=True)),
            **_ENHANCE_BOTH_WAYS,
            "Posterize": Level(lambda s, _: 4 - int(4 * s)),
            "Solarize": Level(lambda s, _: 256 - min(256, int(256 * s))),
            "SolarizeAdd": Level(lambda s, _: min(128, int(110 * s))),
        },
        top=10,
        probability=0.5,
        fill=(124, 116, 104),  # ImageNet's mean.
        resample=(BILINEAR, BICUBIC),
    ),
    # big_vision's, magnitude 10 is strength 1 and more is allowed; AugReg's. Its contrast blends
    # with a grey that depends on the number of pixels; here, as in the paper, with the mean.
    "big_vision": Space(
        {
            **_same(("AutoContrast", "Equalize", "Invert"), Level()),
            **_TURN,
            **_same(_TRANSLATE, Level(lambda s, _: 100 * s, signed=True)),
            **_same(_ENHANCE, Level(lambda s, _: 1.8 * s, base=0.1)),
            "Posterize": Level(lambda s, _: min(8, int(4 * s))),
            "Solarize": Level(lambda s, _: int(256 * s)),
            "SolarizeAdd": Level(lambda s, _: int(110 * s)),
            "Cutout": Level(lambda s, _: int(40 * s)),
        },
        top=10,
        fill=(128, 128, 128),
    ),
}


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

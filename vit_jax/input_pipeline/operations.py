"""Pillow's operations under the names of the AutoAugment paper, and the meaning of their levels.

The operations work on integer values in [0, 255]. The published codes differ in how the level of an
operation becomes its argument; `SPACES` has a table for each code.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Pixels = Image.Image
NEAREST = Image.Resampling.NEAREST
BILINEAR = Image.Resampling.BILINEAR
BICUBIC = Image.Resampling.BICUBIC

# --- operations ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The parameters that an operation may need besides the image and its argument.

    Attributes:
      rng: Generator from which an operation draws a place in the image.
      fill: RGB colour of the pixels that come in from outside the image.
      resample: Pillow's method of interpolation.
    """

    rng: np.random.Generator
    fill: tuple[int, int, int]
    resample: Image.Resampling


def _affine(image: Pixels, matrix: tuple[float, ...], canvas: Canvas) -> Pixels:
    """Applies an affine map: the output at (x, y) is the input at `matrix` · (x, y, 1)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, canvas.resample, fillcolor=canvas.fill
    )


def _enhance(kind: Any) -> Callable[[Pixels, float, Canvas], Pixels]:
    return lambda image, factor, canvas: kind(image).enhance(factor)


def _posterize(image: Pixels, bits: float, canvas: Canvas) -> Pixels:
    # The levels of two spaces go down to 0 bits, which Pillow refuses; the image is then black.
    return ImageOps.posterize(image, int(bits)) if bits >= 1 else image.point(lambda _: 0)


def _solarize_add(image: Pixels, addition: float, canvas: Canvas) -> Pixels:
    table = [min(255, value + int(addition)) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _cutout(image: Pixels, half: float, canvas: Canvas) -> Pixels:
    """Fills a square of side `2 · half` about a random pixel; the square may cross the border."""
    x, y = (int(canvas.rng.integers(side)) for side in image.size)
    half, image = int(half), image.copy()
    image.paste(canvas.fill, (max(x - half, 0), max(y - half, 0), x + half, y + half))
    return image


# Name in the AutoAugment paper -> the operation as a function of (image, argument, canvas).
OPERATIONS: dict[str, Callable[[Pixels, float, Canvas], Pixels]] = {
    "Identity": lambda image, _, canvas: image,
    "AutoContrast": lambda image, _, canvas: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, canvas: ImageOps.equalize(image),
    "Invert": lambda image, _, canvas: ImageOps.invert(image),
    "Posterize": _posterize,
    # Solarizing inverts the values that are equal to the threshold or greater.
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

# Those that move pixels.
MOVES = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation with all that was drawn for it.

    Attributes:
      name: Key of `OPERATIONS`.
      argument: Its argument.
      canvas: Its other parameters.
    """

    name: str
    argument: float
    canvas: Canvas

    def __call__(self, image: Pixels) -> Pixels:
        return OPERATIONS[self.name](image, self.argument, self.canvas)

    @property
    def moves(self) -> bool:
        """Whether it moves pixels, and does not only change their values."""
        return self.name in MOVES

    def on_numbers(self, image: Pixels) -> Pixels:
        """What a moving operation does to an image of mode 'I': nothing between two numbers."""
        canvas: Any = dataclasses.replace(self.canvas, fill=0, resample=NEAREST)
        return OPERATIONS[self.name](image, self.argument, canvas)


# --- levels --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Level:
    """The argument of an operation as a function of a strength between 0 and 1.

    Attributes:
      value: Function of the strength and of the image's width or height in pixels.
      base: Number that is added to the value (with its sign).
      signed: Whether the value is made negative with probability 1/2.
    """

    value: Callable[[float, int], float] = lambda strength, side: 0.0
    base: float = 0.0
    signed: bool = False


@dataclasses.dataclass(frozen=True)
class Space:
    """The operations that one published code draws from, and the meaning of their levels.

    Attributes:
      levels: Name of every operation -> its level.
      top: Magnitude that means a strength of 1.
      probability: Probability that a drawn operation is carried out.
      fill: RGB colour, as in `Canvas`.
      resample: Methods of interpolation, one of which is drawn for each operation.
    """

    levels: Mapping[str, Level]
    top: float
    probability: float = 1.0
    fill: tuple[int, int, int] = (0, 0, 0)
    resample: tuple[Image.Resampling, ...] = (NEAREST,)

    def apply(self, image: Pixels, name: str, strength: float, rng: np.random.Generator) -> Pixels:
        """Applies the operation `name` at a strength between 0 and 1 to an RGB image."""
        return self.draw(image.size, name, strength, rng)(image)

    def draw(
        self, size: tuple[int, int], name: str, strength: float, rng: np.random.Generator
    ) -> "Operation":
        """The operation `name` at a strength between 0 and 1, for an image of `size`.

        Args:
          size: (width, height) in pixels.
          name: Key of `levels`.
          strength: As of `Level`.
          rng: Generator that draws the direction and the interpolation; the operation may draw a
            place in the image from it.
        """
        level = self.levels[name]
        value = level.value(strength, size[1] if name == "TranslateY" else size[0])
        sign = -1 if level.signed and rng.random() < 0.5 else 1
        canvas = Canvas(rng, self.fill, self.resample[int(rng.integers(len(self.resample)))])
        return Operation(name, level.base + sign * value, canvas)


def _same(names: tuple[str, ...], level: Level) -> dict[str, Level]:
    return dict.fromkeys(names, level)


_ENHANCE = ("Color", "Contrast", "Brightness", "Sharpness")
_SHEAR, _TRANSLATE = ("ShearX", "ShearY"), ("TranslateX", "TranslateY")
_TURN = {
    "Rotate": Level(lambda s, _: 30 * s, signed=True),
    **_same(_SHEAR, Level(lambda s, _: 0.3 * s, signed=True)),
}
# A factor of 1 changes nothing. The further a factor is from 1, in either direction, the stronger
# is the change.
_ENHANCE_BOTH_WAYS = _same(_ENHANCE, Level(lambda s, _: 0.9 * s, base=1.0, signed=True))

SPACES = {
    # The space of torchvision, with magnitudes from 0 to 30.
    "torchvision": Space(
        {
            **_same(("Identity", "AutoContrast", "Equalize"), Level()),
            **_TURN,
            **_same(_TRANSLATE, Level(lambda s, side: int(150 / 331 * side * s), signed=True)),
            **_ENHANCE_BOTH_WAYS,
            "Posterize": Level(lambda s, _: 8 - round(4 * s)),
            "Solarize": Level(
                lambda s, _: round(255 * (1 - s), 3)
            ),  # Rounding gives 85 and not 85.00…01.
        },
        top=30,
    ),
    # The space of timm's `rand-…-inc1`, which DeiT uses, with magnitudes from 0 to 10.
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
    # The space of big_vision, which AugReg uses. Magnitude 10 is strength 1, and a greater
    # magnitude is allowed. big_vision's contrast blends with a grey that depends on the number of
    # pixels; the contrast here blends with the mean, as in the paper.
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

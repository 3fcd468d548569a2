"""What happens to one example between the file and the batch.

Every transform is a frozen dataclass that maps a record `{'image', 'label', …}` to a new one. The
random ones draw from the generator they are given, so that an example's augmentation depends on
its place in the stream and on nothing else.
"""

import dataclasses
import math
from typing import Any, Protocol

import numpy as np

from vit_jax.errors import UserError
from vit_jax.input_pipeline.decode import decode_image
from vit_jax.models.preprocess import Preprocess

Record = dict[str, Any]


class Transform(Protocol):
    """Maps a record to a new record; random ones need `rng`."""

    def __call__(self, record: Any, rng: Any = None) -> Any: ...


def generator(rng: np.random.Generator | None, transform: Any) -> np.random.Generator:
    """What a random transform draws from; a TypeError if it was given nothing."""
    if rng is None:
        raise TypeError(f"{type(transform).__name__} is random: pass it a np.random.Generator")
    return rng


@dataclasses.dataclass(frozen=True)
class Chain:
    """Applies transforms one after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        for step in self.steps:
            record = step(record, rng)
        return record


# --- decoding ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Decode:
    """`record['image']` from encoded bytes to pixels, as `decode_image`."""

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        image, name = record["image"], record.get("name", "image")
        if isinstance(image, np.ndarray):  # Pixels already, e.g. under tfds.testing.mock_data.
            image = np.broadcast_to(image, (*image.shape[:2], 3))
        else:
            image = decode_image(image, name)
        return {**record, "image": image}


# --- geometry ------------------------------------------------------------------------------------


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, half-pixel centres, no antialiasing: `tf.image.resize` with its defaults.

    Args:
      image: uint8 or float32 [h, w, channels]; converted to float32 first, so nothing is rounded.
      height: New height in pixels.
      width: New width in pixels.

    Returns:
      float32 [height, width, channels].
    """
    import cv2

    image = np.ascontiguousarray(image, np.float32)
    if image.shape[:2] == (height, width):
        return image
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(height, width, image.shape[2])


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic with antialiasing, Pillow's kernel (a = -0.5) on whole values.

    Args:
      image: uint8 [h, w, 3]; float32 is rounded first.
      height: New height in pixels.
      width: New width in pixels.

    Returns:
      uint8 [height, width, 3].
    """
    from PIL import Image

    image = as_uint8(image)
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def as_uint8(image: np.ndarray) -> np.ndarray:
    """Pixels rounded to whole values, contiguous, as Pillow wants them."""
    if image.dtype != np.uint8:
        image = np.rint(image).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(image)


# 'bilinear' is the original's, without antialiasing; 'bicubic' is antialiased.
RESIZE = {"bilinear": resize_bilinear, "bicubic": resize_bicubic}


@dataclasses.dataclass(frozen=True)
class Resize:
    """Scales the image.

    Attributes:
      size: New side in pixels.
      method: A key of `RESIZE`.
      shape: 'squash' makes it `size` × `size`; 'shortest' keeps the aspect ratio and makes the
        shorter side `size` (the longer is rounded down, as torchvision does).
    """

    size: int
    method: str = "bilinear"
    shape: str = "squash"

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        image = record["image"]
        height, width = _target_shape(image.shape[0], image.shape[1], self.size, self.shape)
        return {**record, "image": RESIZE[self.method](image, height, width)}


@dataclasses.dataclass(frozen=True)
class CentralCrop:
    """The middle `size` × `size` pixels."""

    size: int

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        return {**record, "image": _central_crop(record["image"], self.size)}


def _central_crop(image: np.ndarray, size: int) -> np.ndarray:
    # round(), half to even, is where torchvision's CenterCrop (and so timm) puts the window.
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A window of `size` × `size` pixels, every place as likely."""

    size: int

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        height, width = record["image"].shape[:2]
        top = int(generator(rng, self).integers(height - self.size + 1))
        left = int(generator(rng, self).integers(width - self.size + 1))
        window = record["image"][top : top + self.size, left : left + self.size]
        return {**record, "image": window}


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
    """A random window of random shape, resized to `size` × `size` (Szegedy et al. 2014).

    Draws as `tf.image.sample_distorted_bounding_box` does, with the arguments of the original
    ViT code: the aspect ratio is uniform (not log-uniform), then the height is uniform between
    the smallest and the largest that the area bounds and the image allow; up to 100 tries, else
    the whole image. TensorFlow draws a place below, not up to, the last one that fits (its kernel
    `sample_distorted_bounding_box_op.cc`), so the last row and column are seen by windows of full
    height and width only; so it is here.

    Attributes:
      size: Side of the result in pixels.
      area_min, area_max: Bounds of the window's share of the image's area.
      ratio_min, ratio_max: Bounds of width / height before rounding to pixels; TensorFlow's
        defaults.
      method: A key of `RESIZE`.
    """

    size: int
    area_min: float = 0.05
    area_max: float = 1.0
    ratio_min: float = 0.75
    ratio_max: float = 1.33
    method: str = "bilinear"

    _ATTEMPTS = 100

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        image = record["image"]
        top, left, height, width = self.window(image.shape[0], image.shape[1], generator(rng, self))
        window = image[top : top + height, left : left + width]
        return {**record, "image": RESIZE[self.method](window, self.size, self.size)}

    def window(
        self, image_height: int, image_width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draws (top, left, height, width) in pixels."""
        for _ in range(self._ATTEMPTS):
            ratio = rng.uniform(self.ratio_min, self.ratio_max)
            if (shape := self._shape(image_height, image_width, ratio, rng)) is not None:
                height, width = shape
                top = int(rng.integers(max(image_height - height, 1)))
                left = int(rng.integers(max(image_width - width, 1)))
                return top, left, height, width
        return 0, 0, image_height, image_width

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
        # Rounding to pixels may step over a bound; one pixel of height steps back.
        if height * round(height * ratio) < smallest:
            height += 1
        if height * round(height * ratio) > largest:
            height -= 1
        width = round(height * ratio)
        fits = 0 < height <= image_height and 0 < width <= image_width
        return (height, width) if fits and smallest <= height * width <= largest else None


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random window of random shape, resized to `size` × `size`, as torchvision and timm do it.

    The area is uniform, the aspect ratio log-uniform, every place as likely; after 10 tries the
    largest central window of an allowed ratio.

    Attributes:
      size: Side of the result in pixels.
      area_min, area_max: Bounds of the window's share of the image's area.
      ratio_min, ratio_max: Bounds of width / height.
      method: A key of `RESIZE`.
    """

    size: int
    area_min: float = 0.08
    area_max: float = 1.0
    ratio_min: float = 3 / 4
    ratio_max: float = 4 / 3
    method: str = "bicubic"

    _ATTEMPTS = 10

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        image = record["image"]
        top, left, height, width = self.window(image.shape[0], image.shape[1], generator(rng, self))
        window = image[top : top + height, left : left + width]
        return {**record, "image": RESIZE[self.method](window, self.size, self.size)}

    def window(
        self, image_height: int, image_width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draws (top, left, height, width) in pixels."""
        low, high = math.log(self.ratio_min), math.log(self.ratio_max)
        for _ in range(self._ATTEMPTS):
            area = rng.uniform(self.area_min, self.area_max) * image_height * image_width
            ratio = math.exp(rng.uniform(low, high))
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < height <= image_height and 0 < width <= image_width:
                top = int(rng.integers(image_height - height + 1))
                left = int(rng.integers(image_width - width + 1))
                return top, left, height, width
        height = min(image_height, round(image_width / self.ratio_min))
        width = min(image_width, round(image_height * self.ratio_max))
        return (image_height - height) // 2, (image_width - width) // 2, height, width


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors left and right with the given probability."""

    probability: float = 0.5

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        if generator(rng, self).random() >= self.probability:
            return record

        import cv2

        # NumPy's view would cost the next step, which reads it backwards, several times as much.
        image = record["image"]
        return {**record, "image": cv2.flip(image, 1).reshape(image.shape)}


@dataclasses.dataclass(frozen=True)
class RandomShift:
    """Shifts by a whole number of pixels within ± `pixels` on each axis; zeros come in."""

    pixels: int

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        most, image = self.pixels, record["image"]
        height, width, channels = image.shape
        top, left = generator(rng, self).integers(0, 2 * most, 2, endpoint=True)
        # np.pad does the same ten times slower, which counts for small images.
        padded = np.zeros((height + 2 * most, width + 2 * most, channels), image.dtype)
        padded[most : most + height, most : most + width] = image
        return {**record, "image": padded[top : top + height, left : left + width]}


@dataclasses.dataclass(frozen=True)
class RandomRotation:
    """Turns about the centre by a uniform angle within ± `degrees`; zeros come in."""

    degrees: float

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        import cv2

        image = np.ascontiguousarray(record["image"], np.float32)
        height, width = image.shape[:2]
        centre = ((width - 1) / 2, (height - 1) / 2)
        matrix = cv2.getRotationMatrix2D(
            centre, generator(rng, self).uniform(-self.degrees, self.degrees), 1.0
        )
        turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
        return {**record, "image": turned.reshape(image.shape)}


# --- values --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """Maps [0, 255] to [-1, 1] in float32."""

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        image = np.subtract(record["image"], np.float32(127.5), dtype=np.float32, order="C")
        image /= np.float32(127.5)
        return {**record, "image": image}


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Normalises per channel in float32: `(x / 255 - mean) / std`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        mean, std = (
            (np.array(v, np.float64) * 255).astype(np.float32) for v in (self.mean, self.std)
        )
        image = np.subtract(record["image"], mean, dtype=np.float32, order="C")
        image /= std
        return {**record, "image": image}


@dataclasses.dataclass(frozen=True)
class OneHot:
    """Turns the label, or the list of labels, into float32 [num_classes] of zeros and ones.

    Drops what is not for the model.
    """

    num_classes: int

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        label = np.zeros(self.num_classes, np.float32)
        label[record["label"]] = 1.0
        return {"image": record["image"], "label": label}


# --- evaluation ----------------------------------------------------------------------------------


def preprocess_image(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    """One image as a given model wants it for evaluation.

    Args:
      image: uint8 [height, width, 3], as `decode_image` returns it.
      spec: The model's preprocessing: resized so that the shorter side ('shortest') or both
        ('squash') are `floor(size / crop)`, then the centre is cropped. 'shortest' is timm's
        evaluation transform.

    Returns:
      float32 [size, size, 3], normalised by the spec's mean and standard deviation.

    Raises:
      UserError: if the image has another type or shape, or the spec cannot be honoured.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"expected an image of uint8 [height, width, 3], got {image.dtype} {list(image.shape)}"
        )
    if not 0 < spec.crop <= 1:
        raise UserError(f"the preprocessing's crop must be in (0, 1], got {spec.crop}")
    # A crop of 9/14 must give 14 back, which 9 / (9 / 14) falls short of by a rounding.
    short = math.floor(spec.size / spec.crop + 1e-6)
    height, width = _target_shape(image.shape[0], image.shape[1], short, spec.resize)
    resized = _central_crop(_resize(image, height, width, spec), spec.size)
    return MeanStd(spec.mean, spec.std)({"image": resized})["image"]


def _target_shape(height: int, width: int, short: int, shape: str) -> tuple[int, int]:
    if shape == "squash":
        return short, short
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _resize(image: np.ndarray, height: int, width: int, spec: Preprocess) -> np.ndarray:
    if spec.antialias:
        if spec.method == "bicubic":
            return resize_bicubic(image, height, width)
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if spec.method != "bilinear":
        raise UserError(f"{spec.method} resizing without antialiasing is not supported")
    return resize_bilinear(image, height, width)

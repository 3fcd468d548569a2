"""What happens to one example between the file and the batch.

Every transform is a frozen dataclass that maps a record `{'image', 'label', …}` to a new one. The
random ones draw from the generator they are given, so that an example's augmentation depends on
its place in the stream and on nothing else.
"""

import dataclasses
import io
import math
from typing import Any, Protocol

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.preprocess import Preprocess

Record = dict[str, Any]

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright.


class Transform(Protocol):
    """Maps a record to a new record; random ones need `rng`."""

    def __call__(self, record: Any, rng: Any = None) -> Any: ...


def _rng(rng: np.random.Generator | None, transform: Any) -> np.random.Generator:
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


def decode_image(encoded: bytes, name: str = "image") -> np.ndarray:
    """Decodes any still image that Pillow reads.

    Upright (EXIF orientation applied); grey, palette and CMYK become RGB; an alpha channel is
    dropped; 16-bit channels keep their high byte, as in the original's decoder.

    Args:
      encoded: The file's bytes.
      name: What error messages call it, best its path.

    Returns:
      uint8 [height, width, 3].

    Raises:
      UserError: if the bytes are no image, or not all of one.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(encoded))
        if image.mode.startswith("I") or image.mode == "F":
            image = _eight_bits(image)
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        # Converting what is RGB already would copy it.
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise a dozen types, SyntaxError among them.
        raise UserError(f"cannot decode {name}: {error or type(error).__name__}") from error


def _eight_bits(image: Any) -> Any:
    """16-bit grey to 8-bit; Pillow's own conversion would clip at 255."""
    from PIL import Image

    high = np.asarray(image).astype(np.float64) // 256
    return Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))


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


@dataclasses.dataclass(frozen=True)
class Resize:
    """Squashes the image to `size` × `size`, as `resize_bilinear`."""

    size: int

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        return {**record, "image": resize_bilinear(record["image"], self.size, self.size)}


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
        top = int(_rng(rng, self).integers(height - self.size + 1))
        left = int(_rng(rng, self).integers(width - self.size + 1))
        window = record["image"][top : top + self.size, left : left + self.size]
        return {**record, "image": window}


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
    """A random window of random shape, resized to `size` × `size` (Szegedy et al. 2014).

    Draws as `tf.image.sample_distorted_bounding_box` does, with the arguments of the original
    ViT code: the aspect ratio is uniform (not log-uniform), then the height is uniform between
    the smallest and the largest that the area bounds and the image allow; up to 100 tries, else
    the whole image.

    Attributes:
      size: Side of the result in pixels.
      area_min, area_max: Bounds of the window's share of the image's area.
      ratio_min, ratio_max: Bounds of width / height before rounding to pixels.
    """

    size: int
    area_min: float = 0.05
    area_max: float = 1.0
    ratio_min: float = 0.75
    ratio_max: float = 1.33

    _ATTEMPTS = 100

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        image = record["image"]
        top, left, height, width = self.window(image.shape[0], image.shape[1], _rng(rng, self))
        window = image[top : top + height, left : left + width]
        return {**record, "image": resize_bilinear(window, self.size, self.size)}

    def window(
        self, image_height: int, image_width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draws (top, left, height, width) in pixels."""
        for _ in range(self._ATTEMPTS):
            ratio = rng.uniform(self.ratio_min, self.ratio_max)
            if (shape := self._shape(image_height, image_width, ratio, rng)) is not None:
                height, width = shape
                top = int(rng.integers(image_height - height + 1))
                left = int(rng.integers(image_width - width + 1))
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
class Flip:
    """Mirrors left and right with the given probability."""

    probability: float = 0.5

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        if _rng(rng, self).random() >= self.probability:
            return record
        return {**record, "image": record["image"][:, ::-1]}


@dataclasses.dataclass(frozen=True)
class RandomShift:
    """Shifts by a whole number of pixels within ± `pixels` on each axis; zeros come in."""

    pixels: int

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        most, image = self.pixels, record["image"]
        height, width, channels = image.shape
        top, left = _rng(rng, self).integers(0, 2 * most, 2, endpoint=True)
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
            centre, _rng(rng, self).uniform(-self.degrees, self.degrees), 1.0
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
class OneHot:
    """Turns the integer label into float32 [num_classes], and drops what is not for the model."""

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
    height, width = _target_shape(image.shape[0], image.shape[1], spec)
    resized = _central_crop(_resize(image, height, width, spec), spec.size)
    mean, std = (np.array(values, np.float64) * 255 for values in (spec.mean, spec.std))
    return (resized.astype(np.float32) - mean.astype(np.float32)) / std.astype(np.float32)


def _target_shape(height: int, width: int, spec: Preprocess) -> tuple[int, int]:
    if not 0 < spec.crop <= 1:
        raise UserError(f"the preprocessing's crop must be in (0, 1], got {spec.crop}")
    # A crop of 9/14 must give 14 back, which 9 / (9 / 14) falls short of by a rounding.
    short = math.floor(spec.size / spec.crop + 1e-6)
    if spec.resize == "squash":
        return short, short
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _resize(image: np.ndarray, height: int, width: int, spec: Preprocess) -> np.ndarray:
    if spec.antialias:
        from PIL import Image

        method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        return np.asarray(Image.fromarray(image).resize((width, height), method[spec.method]))
    if spec.method != "bilinear":
        raise UserError(f"{spec.method} resizing without antialiasing is not supported")
    return resize_bilinear(image, height, width)

"""Transforms that resize, crop, mirror, shift or rotate an image."""

import dataclasses

import numpy as np

from vit_jax.families.preprocess import sides
from vit_jax.input_pipeline import label_maps
from vit_jax.input_pipeline.chain import Record, generator

Size = int | tuple[int, int]  # the side of a square, or (height, width), in pixels

# --- resizing ------------------------------------------------------------------------------------


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes bilinearly with half-pixel centres and without antialiasing.

    This is what `tf.image.resize` does by default.

    Args:
      image: uint8 or float32 [h, w, channels]. The image is converted to float32 first, so that
        no value is rounded.
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


def resize_bilinear_exactly(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """As `resize_bilinear`, equal to `tf.image.resize` to the last bit, some thirty times slower.

    Where the values are cut off to whole numbers afterwards, the last bit is worth one of them.
    """
    image = np.ascontiguousarray(image, np.float32)
    left, right, across = _neighbours(image.shape[1], width)
    above, below, down = _neighbours(image.shape[0], height)

    def rows(places: np.ndarray) -> np.ndarray:
        found = image[places]
        start, end = (np.take(found, columns, axis=1) for columns in (left, right))
        return _between(start, end, across[:, None])

    return _between(rows(above), rows(below), down[:, None, None])


def _between(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`start + (end - start) * share`, in the memory of `end`."""
    end -= start
    end *= share
    end += start
    return end


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places before and after each of `new` places among `old`, and the share of the second."""
    half, scale = np.float32(0.5), np.float32(old) / np.float32(new)
    place = (np.arange(new, dtype=np.float32) + half) * scale - half
    before = np.floor(place)
    first, last = np.maximum(before, 0), np.minimum(np.ceil(place), old - 1)
    return first.astype(np.intp), last.astype(np.intp), place - before


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes bicubically with antialiasing, by Pillow's kernel (a = -0.5) on integer values.

    Args:
      image: uint8 or float32 [h, w, channels]; float32 values are rounded to integers first.
      height: New height in pixels.
      width: New width in pixels.

    Returns:
      uint8 [height, width, channels].
    """
    return _resize_by_pillow(image, height, width, "BICUBIC")


def resize_bilinear_antialiased(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """As `resize_bicubic`, bilinearly."""
    return _resize_by_pillow(image, height, width, "BILINEAR")


def _resize_by_pillow(image: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    from PIL import Image

    image = as_uint8(image)
    if image.shape[:2] == (height, width):
        return image

    def resized(pixels: np.ndarray) -> np.ndarray:
        resampling = Image.Resampling[method]
        return np.asarray(Image.fromarray(pixels).resize((width, height), resampling))

    if image.shape[2] == 3:
        return resized(image)
    # Pillow resizes each channel of an image on its own.
    bands = [resized(np.ascontiguousarray(band)) for band in np.moveaxis(image, -1, 0)]
    return np.stack(bands, axis=-1)


def as_uint8(image: np.ndarray) -> np.ndarray:
    """The image with values rounded to uint8, as a contiguous array, which Pillow requires."""
    if image.dtype != np.uint8:
        image = np.rint(image).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(image)


# 'bilinear' is the resizing of the original code, without antialiasing; 'bicubic' antialiases.
RESIZE = {"bilinear": resize_bilinear, "bicubic": resize_bicubic}


def target_shape(height: int, width: int, size: Size, shape: str) -> tuple[int, int]:
    """The (height, width) in pixels that an image has after `Resize(size, shape=shape)`.

    Args:
      height, width: Size of the image before resizing, in pixels.
      size, shape: As in `Resize`.
    """
    new_height, new_width = sides(size)
    if shape == "squash":
        return new_height, new_width
    if new_height != new_width:
        # The smallest image of this aspect ratio that covers the window, as timm rounds it.
        scale = max(new_height / height, new_width / width)
        return round(height * scale), round(width * scale)
    short = new_height
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes the image.

    Attributes:
      size: New length of the shorter side, or of both sides, in pixels; or (height, width), which
        'shortest' covers.
      method: Key of `RESIZE`.
      shape: 'squash' resizes to `size` × `size`; 'shortest' keeps the aspect ratio, makes the
        shorter side `size` and rounds the longer side down, as torchvision does.
    """

    size: Size
    method: str = "bilinear"
    shape: str = "squash"

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        image = record["image"]
        height, width = target_shape(image.shape[0], image.shape[1], self.size, self.shape)
        return {**record, "image": RESIZE[self.method](image, height, width)}


# --- places --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CentralCrop:
    """Cuts out the middle `size` × `size` pixels, or (height, width) ones."""

    size: Size

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        return _window(record, *_central(record["image"], self.size))


def central_crop(image: np.ndarray, size: Size) -> np.ndarray:
    """The middle window of an image [height, width, channels], as a view."""
    top, left, height, width = _central(image, size)
    return image[top : top + height, left : left + width]


def _central(image: np.ndarray, size: Size) -> tuple[int, int, int, int]:
    """Top, left, height and width of the middle window."""
    height, width = sides(size)
    # torchvision's CenterCrop, which timm uses, rounds the window's place half to even, as round().
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return top, left, height, width


def _window(record: Record, top: int, left: int, height: int, width: int) -> Record:
    window = record["image"][top : top + height, left : left + width]
    return {**label_maps.cropped(record, top, left, height, width), "image": window}


def padded(image: np.ndarray, size: Size) -> np.ndarray:
    """An image with black around it where a side is less than `size`, as large before as behind.

    As torchvision's CenterCrop does it: one more pixel behind where the rest is odd.
    """
    missing = (
        max(0, wanted - side) for wanted, side in zip(sides(size), image.shape, strict=False)
    )
    borders = [(rest // 2, rest - rest // 2) for rest in missing]
    return np.pad(image, [*borders, (0, 0)]) if np.any(borders) else image


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cuts out `size` × `size` pixels, or (height, width); every place is equally likely."""

    size: Size

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        (height, width), (rows, columns) = record["image"].shape[:2], sides(self.size)
        top = int(generator(rng, self).integers(height - rows + 1))
        left = int(generator(rng, self).integers(width - columns + 1))
        return _window(record, top, left, rows, columns)


@dataclasses.dataclass(frozen=True)
class Flip:
    """Swaps left and right with the given probability."""

    probability: float = 0.5

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        if generator(rng, self).random() >= self.probability:
            return record

        import cv2

        # NumPy would flip by a view with a negative stride, and the next step would take several
        # times as long to read that view as cv2 takes to flip.
        image = record["image"]
        flipped = cv2.flip(image, 1).reshape(image.shape)
        return {**label_maps.mirrored(record), "image": flipped}


@dataclasses.dataclass(frozen=True)
class RandomShift:
    """Shifts by a random number of pixels, at most `pixels`, along each axis.

    The pixels that the shift uncovers are zeros.
    """

    pixels: int

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        most, image = self.pixels, record["image"]
        height, width, channels = image.shape
        top, left = generator(rng, self).integers(0, 2 * most, 2, endpoint=True)
        # np.pad does the same and takes ten times as long, which matters for small images.
        padded = np.zeros((height + 2 * most, width + 2 * most, channels), image.dtype)
        padded[most : most + height, most : most + width] = image
        return {**record, "image": padded[top : top + height, left : left + width]}


@dataclasses.dataclass(frozen=True)
class RandomRotation:
    """Rotates about the centre by an angle drawn uniformly from [-`degrees`, `degrees`].

    The image becomes float32, and the pixels that the rotation uncovers are zeros.
    """

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

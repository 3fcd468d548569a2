"""The transforms that an example passes through between the file and the batch.

Every transform is a frozen dataclass that maps a record `{'image', 'label', …}` to a new one. The
random ones draw from the generator they are given, so that an example's augmentation depends on the
seed and on its place in the stream and on nothing else. The transforms that move pixels are in
`geometry.py` and `windows.py`, and those that change the values of pixels are in `augment.py`.
"""

import dataclasses
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline import label_maps
from vit_jax.input_pipeline.chain import Chain, Record, Transform, generator
from vit_jax.input_pipeline.channels import decode_channels, with_channels
from vit_jax.input_pipeline.decode import decode_image
from vit_jax.input_pipeline.geometry import (
    RESIZE,
    CentralCrop,
    Flip,
    RandomCrop,
    RandomRotation,
    RandomShift,
    Resize,
    as_uint8,
    central_crop,
    padded,
    resize_bicubic,
    resize_bilinear,
    resize_bilinear_antialiased,
    resize_bilinear_exactly,
    target_shape,
)
from vit_jax.input_pipeline.windows import InceptionCrop, RandomResizedCrop
from vit_jax.ranges import above

__all__ = [
    "RESIZE",
    "CentralCrop",
    "Chain",
    "ClassNumber",
    "Decode",
    "Flip",
    "InceptionCrop",
    "MeanStd",
    "OneHot",
    "RandomCrop",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomShift",
    "Record",
    "Resize",
    "Transform",
    "ValueRange",
    "as_uint8",
    "decode_image",
    "generator",
    "in_pixels",
    "preprocess_image",
    "resize_bicubic",
    "resize_bilinear",
]


@dataclasses.dataclass(frozen=True)
class Decode:
    """Decodes the bytes in `record['image']` to pixels, uint8 [height, width, channels].

    Attributes:
      channels: As of `decode_channels`. Pixels that are there already are only brought to them.
    """

    channels: int = 3

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        image, name = record["image"], record.get("name", "image")
        if isinstance(image, np.ndarray):
            image = with_channels(image, self.channels, name)
        else:
            image = decode_channels(image, self.channels, name)
        return {**record, "image": image}


# --- values --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """Maps [0, 255] to [-1, 1] in float32.

    Attributes:
      in_place: Whether a float32 image may be overwritten, which is safe if the image was made by
        an earlier step and nothing else holds it.
    """

    in_place: bool = False

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        half = np.float32(127.5)
        return {**record, "image": _normalised(record["image"], half, half, self.in_place)}


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Normalises per channel in float32: `(x / 255 - mean) / std`.

    Attributes:
      mean, std: Mean and standard deviation of each channel, for values in [0, 1].
      in_place: As in `ValueRange`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_place: bool = False

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        mean, std = in_pixels(self.mean), in_pixels(self.std)
        return {**record, "image": _normalised(record["image"], mean, std, self.in_place)}


def in_pixels(values: tuple[float, ...]) -> np.ndarray:
    """Means or standard deviations for values in [0, 1], float32 [channels] for [0, 255]."""
    return (np.array(values, np.float64) * 255).astype(np.float32)


def _normalised(image: np.ndarray, mean: Any, std: Any, in_place: bool) -> np.ndarray:
    """`(image - mean) / std` as a contiguous float32 array; it may overwrite `image`."""
    flags = image.flags
    ours = in_place and image.dtype == np.float32 and flags.c_contiguous and flags.writeable
    image = np.subtract(image, mean, out=image if ours else None, dtype=np.float32, order="C")
    image /= std
    return image


@dataclasses.dataclass(frozen=True)
class OneHot:
    """Turns the label, or the list of labels, into float32 [num_classes] of zeros and ones.

    The new record holds the image, the label and what `label_maps` keeps.
    """

    num_classes: int

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        label = np.zeros(self.num_classes, np.float32)
        label[record["label"]] = 1.0
        return {"image": record["image"], "label": label, **label_maps.kept(record)}


@dataclasses.dataclass(frozen=True)
class ClassNumber:
    """Keeps the label as the number of its class, int32; the record must have exactly one.

    The new record holds what that of `OneHot` holds. `vit_jax.train.inputs` makes the vector that
    `OneHot` makes, on the devices.
    """

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        label = np.array(record["label"], np.int32)
        return {"image": record["image"], "label": label, **label_maps.kept(record)}


# --- evaluation ----------------------------------------------------------------------------------


def preprocess_image(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    """Prepares one image for evaluation with a given model.

    Args:
      image: uint8 [height, width, channels], as `Decode` returns it.
      spec: The model's preprocessing. The image is resized so that its shorter side ('shortest') or
        both sides ('squash') have `floor(size / crop)` pixels, and then the centre is cropped; with
        a crop above 1 it is black around.
        'shortest' is timm's evaluation transform.

    Returns:
      float32 [height, width, channels], normalised by the spec's mean and standard deviation.

    Raises:
      UserError: if the image has another type or shape, or the spec cannot be honoured.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != spec.channels:
        raise UserError(
            f"expected an image of uint8 [height, width, {spec.channels}], got {image.dtype} "
            f"{list(image.shape)}"
        )
    above(0).require("the preprocessing's crop", spec.crop)
    height, width = map(spec.before_crop, spec.height_width)
    height, width = target_shape(image.shape[0], image.shape[1], (height, width), spec.resize)
    resized = padded(_resize(image, height, width, spec), spec.size)
    resized = central_crop(resized, spec.size)
    if spec.truncate:
        return _of_whole_numbers(resized, spec)
    return MeanStd(spec.mean, spec.std)({"image": resized})["image"]


def _of_whole_numbers(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    """The pixels cut off to whole numbers and normalised.

    By these steps, the mean and deviation 0.5 give the original's `x / 255 * 2 - 1` to the last
    bit, which those of `MeanStd` do not.
    """
    share = image.astype(np.uint8) / np.float32(255)
    return (share - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)


def _resize(image: np.ndarray, height: int, width: int, spec: Preprocess) -> np.ndarray:
    if spec.antialias:
        resize = resize_bicubic if spec.method == "bicubic" else resize_bilinear_antialiased
        return resize(image, height, width)
    if spec.method != "bilinear":
        raise UserError(f"{spec.method} resizing without antialiasing is not supported")
    resize = resize_bilinear_exactly if spec.truncate else resize_bilinear
    return resize(image, height, width)

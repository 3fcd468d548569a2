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
    resize_bicubic,
    resize_bilinear,
    resize_bilinear_antialiased,
    target_shape,
)
from vit_jax.input_pipeline.windows import InceptionCrop, RandomResizedCrop

__all__ = [
    "RESIZE",
    "CentralCrop",
    "Chain",
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
        mean, std = (
            (np.array(v, np.float64) * 255).astype(np.float32) for v in (self.mean, self.std)
        )
        return {**record, "image": _normalised(record["image"], mean, std, self.in_place)}


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

    The new record holds the image and the label only.
    """

    num_classes: int

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        label = np.zeros(self.num_classes, np.float32)
        label[record["label"]] = 1.0
        return {"image": record["image"], "label": label}


# --- evaluation ----------------------------------------------------------------------------------


def preprocess_image(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    """Prepares one image for evaluation with a given model.

    Args:
      image: uint8 [height, width, channels], as `Decode` returns it.
      spec: The model's preprocessing. The image is resized so that its shorter side ('shortest') or
        both sides ('squash') have `floor(size / crop)` pixels, and then the centre is cropped.
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
    if not 0 < spec.crop <= 1:
        raise UserError(f"the preprocessing's crop must be in (0, 1], got {spec.crop}")
    height, width = map(spec.before_crop, spec.height_width)
    height, width = target_shape(image.shape[0], image.shape[1], (height, width), spec.resize)
    resized = central_crop(_resize(image, height, width, spec), spec.size)
    return MeanStd(spec.mean, spec.std)({"image": resized})["image"]


def _resize(image: np.ndarray, height: int, width: int, spec: Preprocess) -> np.ndarray:
    if spec.antialias:
        resize = resize_bicubic if spec.method == "bicubic" else resize_bilinear_antialiased
        return resize(image, height, width)
    if spec.method != "bilinear":
        raise UserError(f"{spec.method} resizing without antialiasing is not supported")
    return resize_bilinear(image, height, width)

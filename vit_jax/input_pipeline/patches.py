"""Images of any size as a batch of patches, prepared as SigLIP 2's models of variable size are.

batch = patch_batch([image, …], length=256)  # uint8 [height, width, channels] of any size each
zimg, _, _ = model.apply(variables, batch)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline.transforms import preprocess_image
from vit_jax.patches import PatchBatch, cut, fitting_size, stacked


def prepared(
    pixels: np.ndarray, preprocess: Preprocess, flexible: tuple[int, int] | None = None
) -> Any:
    """One decoded image as a model wants it.

    Args:
      pixels: uint8 [height, width, channels], as `Decode` returns them.
      preprocess: How the model wants its images.
      flexible: What `Family.flexible` says of the model; None for one of images of one size.

    Returns:
      float32 [height, width, channels], or a `PatchBatch` without the axis N.

    Raises:
      UserError: for what is no such array.
    """
    if flexible is None:
        return preprocess_image(pixels, preprocess)
    patch, length = flexible
    return _cut(pixels, preprocess, patch, length)


def patch_batch(
    images: Sequence[np.ndarray],
    *,
    length: int = 256,
    patch: int = 16,
    preprocess: Preprocess | None = None,
) -> PatchBatch:
    """Each image resized to as many patches as fit into `length`, in about its aspect ratio.

    Args:
      images: N of uint8 [height, width, channels], as `Decode` returns them.
      length: S, the patches that every image is filled up to, with zeros.
      patch: The side of a patch in pixels.
      preprocess: How pixels are interpolated and normalised, whatever its size is; by default as
        published: bilinear with antialiasing, to [-1, 1].

    Returns:
      float32 patches [N, S, patch · patch · channels], and what `PatchBatch` says of them.

    Raises:
      UserError: without images, for images that are no such arrays, and where `length` is less
        than one patch.
    """
    if not len(images):
        raise UserError("expected at least one image; got none")
    how = preprocess or Preprocess(antialias=True)
    return stacked([_cut(image, how, patch, length) for image in images])


def _cut(image: np.ndarray, preprocess: Preprocess, patch: int, length: int) -> PatchBatch:
    """One image as `patch_batch` makes it, without the axis N."""
    channels = preprocess.channels
    if np.ndim(image) != 3:
        raise UserError(
            f"expected images of uint8 [height, width, {channels}], got {list(np.shape(image))}"
        )
    size = fitting_size(*image.shape[:2], patch=patch, length=length)
    how = dataclasses.replace(preprocess, size=size, crop=1.0, resize="squash")
    (own,), grid = cut(preprocess_image(image, how)[None], patch)
    patches = np.zeros((length, patch * patch * channels), np.float32)
    patches[: len(own)] = own
    return PatchBatch(patches, np.arange(length) < len(own), np.array(grid, np.int32))

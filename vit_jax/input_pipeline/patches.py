"""Images of any size as a batch of patches, prepared as SigLIP 2's models of variable size are.

batch = patch_batch([image, …], length=256)  # uint8 [height, width, channels] of any size each
zimg, _, _ = model.apply(variables, batch)
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline.transforms import preprocess_image
from vit_jax.patches import PatchBatch, cut, fitting_size


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
    preprocess = preprocess or Preprocess(antialias=True)
    channels = preprocess.channels
    patches = np.zeros((len(images), length, patch * patch * channels), np.float32)
    valid = np.zeros((len(images), length), bool)
    grid = np.zeros((len(images), 2), np.int32)
    for i, image in enumerate(images):
        if np.ndim(image) != 3:
            raise UserError(
                f"expected images of uint8 [height, width, {channels}], got {list(np.shape(image))}"
            )
        size = fitting_size(*image.shape[:2], patch=patch, length=length)
        how = dataclasses.replace(preprocess, size=size, crop=1.0, resize="squash")
        (own,), grid[i] = cut(preprocess_image(image, how)[None], patch)
        patches[i, : len(own)], valid[i, : len(own)] = own, True
    return PatchBatch(patches, valid, grid)

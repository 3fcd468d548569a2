"""Images of any size as patches in a row: what models of variable size take. NumPy or JAX arrays.

SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786), section 2.4.2, and NaViT (Dehghani et al. 2023,
arXiv:2307.06304): images keep about their aspect ratio, and are filled up to one length.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.errors import UserError


class PatchBatch(NamedTuple):
    """A batch of images as patches, filled up to one length.

    Attributes:
      patches: [N, S, p · p · C], row by row; in a patch by (row, column, channel). What fills an
        image up may be any numbers that are finite.
      valid: Booleans [N, S]: which of them are an image's. An image's come first.
      grid: Integers [N, 2]: rows and columns of patches of each image, one at least; 0 for what
        fills a batch up.

    One image has the same three without the axis N.
    """

    patches: Any
    valid: Any
    grid: Any


def stacked(images: Sequence[Any]) -> Any:
    """Prepared images as a batch: arrays [...] as [N, ...], and each a `PatchBatch` as one."""
    if isinstance(images[0], PatchBatch):
        return PatchBatch(*map(np.stack, zip(*images, strict=True)))
    return np.stack(images)


def mapped(function: Callable[[Any], Any], images: Any) -> Any:
    """A function of arrays, of images: of an array, or of each of those of a `PatchBatch`."""
    return (
        PatchBatch(*map(function, images)) if isinstance(images, PatchBatch) else function(images)
    )


def cut(images: Any, patch: int) -> tuple[Any, tuple[int, int]]:
    """Images [N, H, W, C] as patches [N, rows · columns, patch · patch · C], and (rows, columns).

    What is left over at the right and at the bottom is left out.

    Raises:
      UserError: for images smaller than a patch, or of other axes.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or min(shape[1:3]) < patch:
        raise UserError(
            f"expected images [N, height, width, channels] of {patch}×{patch} pixels or more, got "
            f"{list(shape)}"
        )
    count, height, width, channels = shape
    rows, columns = height // patch, width // patch
    x = images[:, : rows * patch, : columns * patch]
    x = x.reshape(count, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, rows * columns, patch * patch * channels), (rows, columns)


def in_squares(patches: Any, patch: int) -> Any:
    """Patches [N, S, patch · patch · C] as N · S images of one patch each."""
    return patches.reshape(-1, patch, patch, patches.shape[-1] // (patch * patch))


_LEAST_SCALE, _LARGEST_SCALE, _PRECISION = 1e-6, 100.0, 1e-5


def fitting_size(height: int, width: int, *, patch: int, length: int) -> tuple[int, int]:
    """(height, width) in pixels: whole patches, `length` at most, in about the aspect ratio.

    The largest scale at which both sides, rounded up to whole patches, make no more than `length`
    of them; found by bisection, as big_vision and transformers do, so that all round alike.

    Raises:
      UserError: for an image without pixels, or no patches.
    """
    if min(height, width, patch, length) < 1:
        raise UserError(
            f"expected an image of one pixel and a length of one patch at least, got "
            f"{height}×{width} pixels and {length} patches of {patch} pixels"
        )

    def scaled(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch)) for side in (height, width))
        return rows, columns

    low, high = _LEAST_SCALE, _LARGEST_SCALE
    while high - low >= _PRECISION:
        middle = (low + high) / 2
        if math.prod(scaled(middle)) <= length:
            low = middle
        else:
            high = middle
    rows, columns = scaled(low)
    return rows * patch, columns * patch

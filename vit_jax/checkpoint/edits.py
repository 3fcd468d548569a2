"""What can be done to a checkpoint's tensors: another image size, another head, another type.

Every entry point that changes weights, from Python, `convert`, `train` or `parity`, does it by
these functions. Nothing is computed before an edit is applied, see `names.applied`.
"""

import functools
import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from vit_jax.checkpoint import names
from vit_jax.errors import UserError
from vit_jax.families.family import Config, Edit, Shapes, Size, is_head
from vit_jax.families.registry import get
from vit_jax.families.resize import resample_patches

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def resized(
    config: Config, shapes: Shapes, old: Size | None, new: Size, method: str | None = None
) -> Edit | None:
    """Fits tensors of these shapes to images of another size; None where nothing changes.

    Args:
      config: Constructor fields.
      shapes: The tensors' shapes by our names.
      old: (height, width) in pixels that they are for; None where that is not known.
      new: The size wanted.
      method: As of `resize_posembed`. None resizes as the family's own code does: the original's
        way for its models ('official': bilinear, corners aligned), for others the way of its
        paper's code.

    Raises:
      UserError: where the architecture takes no other size with these weights.
    """
    family, config = get(config), names.with_channels(config, shapes)
    if family.stride is not None and family.num_patches is not None:
        stride = family.stride(config)
        grid = new[0] // stride[0], new[1] // stride[1]
        if min(grid) < 1:
            raise UserError(f"{new} pixels hold no patch of {stride[0]}")
        if math.prod(grid) == family.num_patches(config, shapes) and old is None:
            return None  # nothing says that as many patches lay otherwise
        if old is not None and (old[0] // stride[0], old[1] // stride[1]) == grid:
            return None
    if old is None and family.resize is None and family.num_patches is not None:
        raise UserError(
            f"{names.called(config)} takes images of one size only, not of {new} pixels"
        )
    if old is None:
        raise UserError(
            "the weights' grid of patches is neither square nor recorded, so that they cannot be "
            "resized; give the grid or the image size that they are for"
        )
    if old == new:
        return None
    method = method or family.resize_method
    after = names.expected_shapes(config, num_classes=names.num_classes_of(shapes), image_size=new)
    changed = names.resizes(config, old, new, method)
    wrong = [n for n, s in shapes.items() if after.get(n) != tuple(s) and n not in changed]
    if wrong or after.keys() != shapes.keys():
        raise UserError(
            f"{names.called(config)} takes images of {old[0]}×{old[1]} pixels with these weights: "
            f"{', '.join(wrong[:3]) or 'its layers'} cannot be resized to {new[0]}×{new[1]}"
        )
    changed = {n: change for n, change in changed.items() if n in shapes}
    if not changed:
        return None
    return Edit(
        f"resized from images of {old} to {new} pixels, method {method!r}: "
        f"{', '.join(list(changed)[:3])}{', …' if len(changed) > 3 else ''}",
        changed=changed,
    )


def with_channels(config: Config, shapes: Shapes, channels: int) -> Edit | None:
    """Fits the kernels that read the pixels to images of another number of channels.

    As timm does it for a model of RGB images: to one channel they are summed, which gives a grey
    image what RGB with three equal channels would give; to more they are repeated in turn and
    scaled by old / new, so that equal channels give the same.

    Returns:
      None where the number is the same.

    Raises:
      UserError: for a number below 1, and for a family whose weights cannot be fitted.
    """
    if channels < 1:
        raise UserError(f"a number of channels is 1 or more; got {channels}")
    old = names.channels_of(config, shapes)
    if old == channels:
        return None
    if get(config).predicts_pixels:
        raise UserError(
            f"{names.called(config)} takes images of {old} channels with these weights, not of "
            f"{channels}: it predicts their pixels, of all channels; its encoder alone can be "
            "fitted, --part encoder"
        )
    if get(config).stem_norms(config):
        raise UserError(
            f"{names.called(config)} takes images of {old} channels with these weights, not of "
            f"{channels}: it normalises all pixels of a patch together, of all channels"
        )

    def fitted(kernel: np.ndarray) -> np.ndarray:
        x = kernel.astype(np.float64)
        if channels == 1:
            x = x.sum(axis=-2, keepdims=True)
        else:
            x = x[..., np.arange(channels) % old, :] * (old / channels)
        return x.astype(kernel.dtype)

    kernels = [name for name in get(config).stem(config) if name in shapes]
    how = "summed" if channels == 1 else "repeated and scaled"
    return Edit(
        f"{old} channels of the images become {channels}, {how}: {', '.join(kernels)}",
        changed=dict.fromkeys(kernels, fitted),
        config={"channels": channels},
    )


def with_patches(config: Config, shapes: Shapes, patch: Size) -> Edit | None:
    """Fits the kernel that reads the patches to patches of another size, `resample_patches`.

    The grid of patches stays as it is, so that the weights are then for images of another size.

    Args:
      config: Constructor fields.
      shapes: The tensors' shapes by our names.
      patch: (height, width) in pixels.

    Returns:
      None where the size is the same.

    Raises:
      UserError: for a model whose tokens are not read off patches side by side.
    """
    family = get(config)
    old = None if family.stride is None else tuple(family.stride(config))
    kernels = [name for name in family.stem(config) if name in shapes]
    field = next((name for name in ("patches", "patch_size") if name in config), None)
    if field is None or len(kernels) != 1 or shapes[kernels[0]][:2] != old:
        raise UserError(
            f"{names.called(config)} reads no patches that lie side by side with one kernel: their "
            "size cannot be changed"
        )
    if family.predicts_pixels:
        raise UserError(
            f"{names.called(config)} predicts the pixels of its patches, whose size cannot be "
            "changed; that of its encoder alone can, --part encoder"
        )
    if old == patch:
        return None
    told = {"size": patch} if field == "patches" else patch[0] if patch[0] == patch[1] else patch
    return Edit(
        f"patches of {old} pixels become {patch}, resampled by the pseudo-inverse: {kernels[0]}",
        changed={kernels[0]: functools.partial(resample_patches, new=patch)},
        config={field: told},
    )


def covered(config: Config, image_size: Size) -> Size:
    """(height, width) in pixels of an image's whole patches, where the model has one grid."""
    cells, stride = names.grid_of(config, image_size), get(config).stride
    if cells is None or stride is None:
        return image_size
    height, width = stride(config)
    return cells[0] * height, cells[1] * width


def without_pre_logits(shapes: Shapes) -> Edit | None:
    """Drops `pre_logits`, and the head that was trained on its output; None without it."""
    gone = [n for n in shapes if n.startswith("pre_logits/")]
    if not gone:
        return None
    gone += [n for n in shapes if is_head(n)]
    return Edit(
        "pre_logits dropped, and the head that reads it",
        dropped=tuple(gone),
        config={"representation_size": None},
    )


def with_head(
    config: Config, shapes: Shapes, num_classes: int, image_size: Size | None, dtype: np.dtype
) -> Edit:
    """A head of zeros for so many classes in the place of the file's; 0 drops it.

    Raises:
      UserError: for a negative number.
    """
    if num_classes < 0:
        raise UserError(f"a number of classes is 0 or more; got {num_classes}")
    gone = tuple(n for n in shapes if is_head(n))
    if not num_classes:
        return Edit("head dropped", dropped=gone)
    size = image_size or names.default_size(config)  # a head does not depend on it
    expected = names.expected_shapes(config, num_classes=num_classes, image_size=size)
    added = {
        name: lambda shape=shape: np.zeros(shape, dtype)
        for name, shape in expected.items()
        if is_head(name)
    }
    step = f"head replaced by zeros for {num_classes} classes"
    return Edit(step, dropped=gone, added=added)


def with_heads_of(shapes: Shapes, model: Mapping[str, np.ndarray]) -> Edit:
    """The head of another tree in the place of the file's."""
    gone = tuple(n for n in shapes if is_head(n))
    added = {n: lambda x=x: x for n, x in model.items() if is_head(n)}
    return Edit("the model's own head", dropped=gone, added=added)


def cast(shapes: Shapes, dtype: str) -> Edit:
    """Every tensor in another type; UserError for an unknown one."""
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")

    def to_dtype(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # what overflows is reported as not finite
            return x.astype(DTYPES[dtype])

    return Edit(f"cast to {dtype}", changed=dict.fromkeys(shapes, to_dtype))

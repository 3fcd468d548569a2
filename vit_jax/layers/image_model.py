"""What every model is: a module of images, which says in one sentence what is wrong with them."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.families import registry
from vit_jax.patches import PatchBatch
from vit_jax.tree import arrays

_FEW = (1, 3, 4)  # rows that no image has, but channels that many have
_MANY = 16  # channels that hardly an image has, but columns that every image has


class ImageModel(nn.Module):
    """A module whose `__call__` takes images [N, H, W, C] first.

    Where it is called with others, and where images do not fit the parameters, a UserError says
    what was expected, what came, and what helps. Nothing is computed or changed for it.
    """

    def __init_subclass__(cls, **kwargs: Any):
        if "__call__" in cls.__dict__:
            setattr(cls, "__call__", _checked(cls.__dict__["__call__"]))  # noqa: B010
        super().__init_subclass__(**kwargs)


def _checked(call: Callable[..., Any]) -> Callable[..., Any]:
    first = list(inspect.signature(call).parameters)[1]

    @functools.wraps(call)
    def checked(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        images = args[0] if args else kwargs[first]
        if isinstance(images, PatchBatch):
            return call(self, *args, **kwargs)
        _require_images(images)
        try:
            return call(self, *args, **kwargs)
        except Exception as error:  # the model, Flax and JAX raise different types for bad shapes
            if message := _mismatch(self, images.shape):
                raise UserError(message) from error
            raise

    return checked


def _require_images(images: Any) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4:
        hint = "; add the axis of the batch, images[None]" if len(shape) == 3 else ""
        raise UserError(f"expected images [N, height, width, channels], got {list(shape)}{hint}")
    if not shape[0]:
        raise UserError(
            f"expected at least one image [N, height, width, channels], got an empty batch "
            f"{list(shape)}; leave it out"
        )
    if shape[1] in _FEW and min(shape[2:]) > _MANY:
        raise UserError(_channels_first(shape))


def _channels_first(shape: tuple[int, ...]) -> str:
    return (
        f"expected images [N, height, width, channels], got {list(shape)}, whose channels come "
        "first as in PyTorch; take images.transpose(0, 2, 3, 1)"
    )


def _mismatch(model: nn.Module, shape: tuple[int, ...]) -> str:
    """How images differ from those that the parameters are for, in words; '' if they do not."""
    shapes = {name: tuple(x.shape) for name, x in arrays(model.variables.get("params", {})).items()}
    try:
        config = registry.config_of(model)
        family = registry.get(config)
        if not any(name in shapes for name in family.stem(config)):
            return ""
        return _other_channels(family, config, shapes, shape) or _other_size(
            family, config, shapes, (shape[1], shape[2])
        )
    except (UserError, LookupError):  # a class of the caller's, or parameters of another model
        return ""


def _other_channels(family: Any, config: Any, shapes: Any, got: tuple[int, ...]) -> str:
    wanted = family.channels_of(config, shapes)
    if got[3] == wanted:
        return ""
    if got[1] == wanted:
        return _channels_first(got)
    return (
        f"expected images [N, height, width, {wanted}], as the parameters are for, got "
        f"{list(got)}; `vit-jax convert --channels {got[3]}` fits weights to such images"
    )


def _other_size(family: Any, config: Any, shapes: Any, got: tuple[int, ...]) -> str:
    end = f"as the parameters are for, got {got[0]}×{got[1]}; resize the images"
    if family.resize is not None:
        end += (
            f", or the weights by `vit-jax convert --image-size {got[0]}x{got[1]}` or "
            "`checkpoint.load_pretrained`"
        )
    if family.num_patches is not None and family.stride is not None:
        rows, columns = family.stride(config)
        wanted = family.num_patches(config, shapes)
        if wanted in (0, math.prod((got[0] // rows, got[1] // columns))):
            return ""
        side = math.isqrt(wanted)
        such = f", such as {side * rows}×{side * columns}" if side**2 == wanted else ""
        return f"expected images of {wanted} patches of {rows}×{columns} pixels{such}, {end}"
    wanted = family.image_size(config, shapes)
    if wanted in (None, tuple(got)):
        return ""
    return f"expected images of {wanted[0]}×{wanted[1]} pixels, {end}"

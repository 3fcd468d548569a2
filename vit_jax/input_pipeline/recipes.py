"""Builds the transforms that `config.pp` asks for.

`AUGMENTATIONS` names the ways to prepare a training image. Their parameters are fields of
`config.pp`, which `configs/common.py` declares with their defaults.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.errors import UserError, suggest
from vit_jax.families.preprocess import Preprocess, sides
from vit_jax.input_pipeline import augment as aug
from vit_jax.input_pipeline import transforms as tr
from vit_jax.ranges import SHARE, Range

Steps = tuple[tr.Transform, ...]

_OFFICIAL_VALUES = {0.5}
# Steps that change colours by what they know of red, green and blue.
_OF_COLOURS = ("randaug", "autoaug", "deit", "three_augment", "lvvit", "squash_randaug")
# Those that tell where in the image each of its pixels was, see `label_maps.py`. The others move
# pixels after a window was taken.
_TELL_PLACES = ("lvvit", "random_resized_crop", "three_augment", "inception", "crop", "none")


def _scaled(pp: Any) -> Steps:
    """Resizing to `resize` (or to `crop` if it is None) and, if that leaves a border, a crop."""
    resize = tr.Resize(pp.resize or pp.crop, pp.resize_method, pp.resize_shape)
    # An image that was squashed to the size of the crop needs no crop.
    whole = pp.resize_shape == "squash" and pp.resize in (None, pp.crop)
    return (resize,) if whole else (resize, tr.CentralCrop(pp.crop))


def _inception(pp: Any) -> Steps:
    window = tr.InceptionCrop(pp.crop, area_min=pp.area_min, method=pp.resize_method)
    return (window, tr.Flip())


def _random_resized_crop(pp: Any) -> Steps:
    window = tr.RandomResizedCrop(pp.crop, area_min=pp.area_min, method=pp.resize_method)
    return (window, tr.Flip())


def _crop(pp: Any) -> Steps:
    resize = tr.Resize(pp.resize or pp.crop, pp.resize_method, pp.resize_shape)
    return (resize, tr.RandomCrop(pp.crop), tr.Flip())


def _digits(pp: Any) -> Steps:
    # The images are scaled up before they are rotated: a rotation at 8 × 8 pixels would blur the
    # training images as no test image is blurred.
    shift = max(1, min(sides(pp.crop)) // 8)
    return (*_scaled(pp), tr.RandomShift(shift), tr.RandomRotation(12))


def _rand_augment(pp: Any) -> tr.Transform:
    return aug.RandAugment(**pp.randaug)


def _auto_augment(pp: Any) -> tr.Transform:
    if pp.autoaug_policy is None:
        return aug.AutoAugment()
    return aug.AutoAugment(tuple(tuple(tuple(op) for op in line) for line in pp.autoaug_policy))


# Name of the augmentation -> its steps. The steps end before colour jitter, the normalisation of
# values and erasing, which `train_transform` adds to every augmentation.
AUGMENTATIONS: dict[str, Callable[[Any], Steps]] = {
    # The augmentation of the original code: a window of `area_min` to 100 % of the area, resized to
    # `crop`, and a flip. The window sets the scale, and `resize` is not used.
    "inception": _inception,
    # The original code's `inception_crop=False`: resizing to `resize`, a random crop and a flip.
    "crop": _crop,
    # 'inception' and then the policies of the published recipes that train from scratch.
    "randaug": lambda pp: (*_inception(pp), _rand_augment(pp)),
    "autoaug": lambda pp: (*_inception(pp), _auto_augment(pp)),
    # The window and flip of torchvision and timm: alone, with DeiT's RandAugment, and with the
    # ThreeAugment of DeiT III.
    "random_resized_crop": _random_resized_crop,
    "deit": lambda pp: (*_random_resized_crop(pp), _rand_augment(pp)),
    "three_augment": lambda pp: (*_random_resized_crop(pp), aug.ThreeAugment()),
    # The steps of LV-ViT's released code: flip and RandAugment of the whole image, then the window.
    "lvvit": lambda pp: (tr.Flip(), _rand_augment(pp), _random_resized_crop(pp)[0]),
    # The whole image, a flip and RandAugment, which cuts nothing away that a caption may speak of
    # (LiT's recipe).
    "squash_randaug": lambda pp: (*_scaled(pp), tr.Flip(), _rand_augment(pp)),
    # A digit that is flipped or cut may be another digit. So digits are shifted by up to 1/8 of the
    # side and rotated by up to 12°.
    "digits": _digits,
    # The same steps as in evaluation.
    "none": _scaled,
}


def train_transform(
    pp: Any,
    num_classes: int,
    *,
    pixels: bool = False,
    numbers: bool = False,
    last: tr.Transform | None = None,
) -> tr.Transform:
    """The transform from a record with encoded bytes to a training example.

    Args:
      pp: A complete `config.pp` that `check` accepts.
      num_classes: Length of the label vector.
      pixels: Whether the image stays uint8, not normalised, where the augmentation ends in pixels.
      numbers: Whether the label stays the number of its class.
      last: The last step, which makes the example of a record whose image is done; None for that
        of images with labels.
    """
    steps = _augmentation(pp)
    if not (pixels and ends_in_pixels(pp, train=True)):
        steps += _values(pp)
    if pp.erasing:
        steps += (aug.RandomErasing(pp.erasing),)
    return _transform(pp, steps, last or _labelled(num_classes, numbers))


def eval_transform(
    pp: Any,
    num_classes: int,
    *,
    pixels: bool = False,
    numbers: bool = False,
    last: tr.Transform | None = None,
) -> tr.Transform:
    """The transform from a record with encoded bytes to a test example, without augmentation.

    Its arguments are those of `train_transform`.
    """
    steps = _scaled(pp)
    if not (pixels and ends_in_pixels(pp, train=False)):
        steps += _values(pp)
    return _transform(pp, steps, last or _labelled(num_classes, numbers))


def ends_in_pixels(pp: Any, *, train: bool) -> bool:
    """Whether an image is uint8 before it is normalised, and nothing follows that.

    Bilinear resizing gives fractions of a pixel's values; bicubic resizing and the policies give
    pixels. Erasing follows the normalisation, because its noise has the scale of normalised values.
    """
    if train and pp.erasing:
        return False
    # The type does not depend on the image, so the steps are tried on a black one.
    height, width, channels = image_shape(pp)
    black = {"image": np.zeros((height + 1, width + 1, channels), np.uint8)}
    steps = tr.Chain(_augmentation(pp) if train else _scaled(pp))
    return steps(black, np.random.default_rng(0))["image"].dtype == np.uint8


def _augmentation(pp: Any) -> Steps:
    steps = AUGMENTATIONS[pp.augment](pp)
    return (*steps, aug.ColorJitter(*(pp.color_jitter,) * 3)) if pp.color_jitter else steps


def _transform(pp: Any, steps: Steps, last: tr.Transform) -> tr.Transform:
    return tr.Chain((tr.Decode(pp.channels), *steps, last))


def _labelled(num_classes: int, numbers: bool) -> tr.Transform:
    return tr.ClassNumber() if numbers else tr.OneHot(num_classes)


def _values(pp: Any) -> Steps:
    mean, std = per_channel(pp, "mean"), per_channel(pp, "std")
    official = {*mean, *std} == _OFFICIAL_VALUES
    # The steps before this one made the array, and nothing else holds it: it may be overwritten.
    return (tr.ValueRange(True) if official else tr.MeanStd(mean, std, True),)


def image_shape(pp: Any) -> tuple[int, int, int]:
    """(height, width, channels) of the images that the model gets."""
    return (*sides(pp.crop), pp.channels)


def per_channel(pp: Any, name: str) -> tuple[float, ...]:
    """`pp.mean` or `pp.std`, a number for each channel; equal ones stand for any number of them.

    Raises:
      UserError: for different numbers that are not as many as the channels.
    """
    values = tuple(pp[name])
    if len(set(values)) == 1:
        return values[:1] * pp.channels
    if len(values) != pp.channels:
        raise UserError(
            f"config.pp.{name} must be a number for each of the {pp.channels} channels of "
            f"config.pp.channels, or one for all; got {values}"
        )
    return values


def preprocess(pp: Any) -> Preprocess:
    """The preprocessing of `eval_transform` as data, which is stored with the trained model."""
    height, _ = sides(pp.crop)
    return Preprocess(
        size=pp.crop if isinstance(pp.crop, int) else tuple(pp.crop),
        crop=height / sides(pp.resize or pp.crop)[0],
        resize=pp.resize_shape,
        method=pp.resize_method,
        antialias=pp.resize_method == "bicubic",
        mean=per_channel(pp, "mean"),
        std=per_channel(pp, "std"),
    )


def check(pp: Any) -> None:
    """Raises UserError for a `config.pp` with which no image can be made."""
    choices = {
        "augment": AUGMENTATIONS,
        "resize_method": tr.RESIZE,
        "resize_shape": ("squash", "shortest"),
        "randaug.space": aug.SPACES,
    }
    values = {**pp, "randaug.space": pp.randaug.space}
    for name, known in choices.items():
        if values[name] not in known:
            raise UserError(
                f"unknown config.pp.{name} {values[name]!r}.{suggest(str(values[name]), known)} "
                f"Choose from {', '.join(known)}"
            )
    for name in ("crop", "resize"):
        if pp[name] is not None and not _is_size(pp[name]):
            raise UserError(
                f"config.pp.{name} must be an integer of at least 1, got {pp[name]!r}; for images "
                "that are no squares two, (height, width)"
            )
    _check_sizes(pp)
    for name in ("mean", "std"):
        per_channel(pp, name)  # an error where there are too few
    if pp.channels != 3 and (pp.augment in _OF_COLOURS or pp.color_jitter):
        what = "color_jitter" if pp.color_jitter else f"augment={pp.augment!r}"
        raise UserError(
            f"config.pp.{what} changes colours, which images of config.pp.channels={pp.channels} "
            "lack; take 'inception', 'random_resized_crop', 'crop' or 'none'"
        )
    _check_policy(pp.autoaug_policy)


def check_tells_places(pp: Any) -> None:
    """Raises UserError for an augmentation that leaves unknown which part of an image is seen."""
    if pp.augment not in _TELL_PLACES:
        raise UserError(
            f"config.pp.augment={pp.augment!r} moves pixels where no label map can follow; with "
            f"config.token_labels.maps choose from {', '.join(_TELL_PLACES)}"
        )


def _is_size(value: Any) -> bool:
    pair = value if isinstance(value, tuple | list) else (value, value)
    return len(pair) == 2 and all(type(x) is int and x >= 1 for x in pair)


def _check_sizes(pp: Any) -> None:
    """Raises UserError for sizes from which no window can be cropped."""
    if pp.resize is None:
        return
    if isinstance(pp.resize, int) != isinstance(pp.crop, int):
        raise UserError(
            f"config.pp.resize ({pp.resize}) and pp.crop ({pp.crop}) must both be the side of a "
            "square, or both (height, width)"
        )
    crop, resize = sides(pp.crop), sides(pp.resize)
    if min(resize[0] - crop[0], resize[1] - crop[1]) < 0:
        raise UserError(f"config.pp.resize ({pp.resize}) is smaller than pp.crop ({pp.crop})")
    if preprocess(pp).before_crop(crop[1]) != resize[1]:
        raise UserError(
            f"config.pp.resize {resize} has another aspect ratio than pp.crop {crop}: the share "
            "that a central crop keeps is recorded as one number"
        )


def _check_policy(policy: Any) -> None:
    if policy is None:
        return
    try:
        operations = [op for line in policy for op in line]
        wrong = [op for op, _, _ in operations if op not in aug.POLICY_SPACE.levels]
    except (TypeError, ValueError) as error:
        raise UserError(
            "config.pp.autoaug_policy must be None or lines of (operation, probability, "
            f"level), got {policy!r}"
        ) from error
    if wrong or not policy:
        raise UserError(
            f"config.pp.autoaug_policy has unknown operations {wrong}: choose from "
            f"{', '.join(aug.POLICY_SPACE.levels)}"
        )
    for _, probability, level in operations:
        SHARE.require("a probability of config.pp.autoaug_policy", probability)
        Range(0, aug.POLICY_SPACE.top).require("a level of config.pp.autoaug_policy", level)

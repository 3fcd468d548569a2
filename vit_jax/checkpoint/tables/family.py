"""What a converter must know of a family: its names elsewhere, and how it takes other sizes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.families.rules import Table

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
Size = tuple[int, int]  # height and width in pixels
Edits = dict[str, Callable[[np.ndarray], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Names:
    """One family. Our names are flat; heads are called `head…`, and nothing else is.

    Attributes:
      layouts: 'timm', 'hf', … -> config to table, heads included.
      timm_args: Config to the arguments that make timm's model of any registered name into one of
        these sizes; None where timm has none or cannot be told.
      timm_img_size: Whether timm's models of the family are built with `img_size`.
      points: Config to pairs of modules, ours and the reference's, that give the same tokens: where
        a comparison looks on the way to the logits.
      ignore: Regular expressions (full match) of their names that carry no information. BatchNorm's
        `num_batches_tracked` is always ignored.
      buffers: Config to what of `ignore` a strict loader needs, made anew on export.
      image_size: Config and shapes to the image size that the parameters are for; None where they
        fit any, or do not tell.
      resize: Config, old size, new size and method ('official' or 'timm', of `resize_posembed`) to
        the edits that fit parameters to another image size. None where no parameter depends on it
        or where nothing can be done.
    """

    layouts: Mapping[str, Callable[[Config], Table]]
    timm_args: Callable[[Config], dict[str, Any]] | None = None
    timm_img_size: bool = True
    points: Callable[[Config], list[tuple[str, str]]] = lambda config: []
    ignore: tuple[str, ...] = ()
    buffers: Callable[[Config], dict[str, np.ndarray]] = lambda config: {}
    image_size: Callable[[Config, Shapes], Size | None] = lambda config, shapes: None
    resize: Callable[[Config, Size, Size, str], Edits] | None = None

"""A sheet of pictures: each query at the left, and its neighbours in a row beside it."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vit_jax.errors import UserError, short

if TYPE_CHECKING:
    from PIL import Image

_SIDE, _GAP, _LINE = 128, 12, 16  # pixels of a picture, between pictures, and of a line of text
_LETTERS = 20  # that fit below a picture
_WHITE, _BLACK, _GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


class Tile(NamedTuple):
    """A picture and what stands below it.

    Attributes:
      pixels: uint8 [height, width, channels]; one of another number of channels than 3 is drawn by
        its first.
      title, text: Two lines.
    """

    pixels: np.ndarray
    title: str
    text: str


def check(path: str | os.PathLike[str]) -> None:
    """Raises UserError for a file that is not called .png, or whose folder does not exist."""
    path = os.fspath(path)
    if not path.lower().endswith(".png"):
        raise UserError(f"a sheet is a PNG: expected a file name in .png, got {path!r}")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise UserError(f"there is no directory {os.path.dirname(path)!r} to write {path!r} to")


def draw(rows: Sequence[Sequence[Tile]], path: str | os.PathLike[str]) -> None:
    """Draws rows of tiles to a PNG, which appears whole or not at all.

    The first tile of a row stands apart from the others.

    Raises:
      UserError: as `check`, and if the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    from vit_jax.checkpoint.files.archive import replacing

    check(path)
    height = _GAP + len(rows) * (_SIDE + 2 * _LINE + 2 * _GAP)
    width = 3 * _GAP + max(map(len, rows)) * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, height), _WHITE)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, tiles in enumerate(rows):
        top = _GAP + row * (_SIDE + 2 * _LINE + 2 * _GAP)
        for column, tile in enumerate(tiles):
            left = _GAP + column * (_SIDE + _GAP) + (2 * _GAP if column else 0)
            picture = _fitted(tile.pixels)
            x, y = (_SIDE - picture.width) // 2, (_SIDE - picture.height) // 2
            sheet.paste(picture, (left + x, top + y))
            for line, (text, colour) in enumerate(((tile.title, _BLACK), (tile.text, _GREY))):
                place = left, top + _SIDE + 2 + line * _LINE
                pen.text(place, short(text, _LETTERS), fill=colour, font=font)
        middle = 2 * _GAP + _SIDE
        pen.line([(middle, top), (middle, top + _SIDE)], fill=_GREY)
    with replacing(path) as file:
        sheet.save(file, "PNG")


def _fitted(pixels: np.ndarray) -> "Image.Image":
    """The whole picture, as large as a tile; small ones are enlarged in squares."""
    from PIL import Image

    if pixels.shape[-1] != 3:
        pixels = np.repeat(pixels[..., :1], 3, axis=-1)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = _SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    how = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    return image.resize((size[0], size[1]), how)

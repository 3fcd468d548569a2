"""Maps of labels beside images: what a trained network says of every part of an image.

The format is that of token labelling (Jiang et al. 2021, arXiv:2104.10858): for an image
`CLASS/NAME.JPEG` a file `CLASS/NAME.pt` of PyTorch, or `CLASS/NAME.npy` of NumPy, with an array
[2, M, H, W] that covers the whole image: the scores of the M best classes, before any softmax, and
the numbers of these classes. A third plane, in which the released code keeps the crop, is ignored.

A record that has a map knows the window of the image that it shows. Transforms that crop, mirror
or move an image say so by `cropped`, `mirrored` and `moved`, which change nothing in other records.
The labels of the crop are made of map and window on the devices, see
`vit_jax/train/token_labels.py`.
"""

import io
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.input_pipeline.chain import Record

# Fields of records and batches: a map, float32 [2, M, H, W]; and the window of it that the image
# shows, float32 [4]: left, top, width and height as shares of the map's sides.
MAP, WINDOW = "label_map", "label_window"
SUFFIXES = (".pt", ".npy")

# The name of the file in the names of TFDS's records, and in those of records of a tar file.
_FILE = re.compile(r"(?:\((?P<tfds>[^()]*)\)|\.tar:(?P<tar>.*))$")


class LabelMaps:
    """The records of a source with one label each, and the map of each.

    Args:
      source: Images that have names. The folder of a map is the name of its image's class.
      folder: Folder, or address, of the maps.

    Raises:
      UserError: if the folder or a map is missing, if a file is no such map, has another shape than
        that of the first image, or names a class that the source has not; when the source is
        opened, for the first image.
    """

    def __init__(self, source: Any, folder: str):
        self._source, self._folder = source, folder
        self.num_classes: int = source.num_classes
        self.int2str: Callable[[int], str] = source.int2str
        self.description = f"{source.description}, label maps of {folder}"
        if not stores.is_dir(folder):
            raise UserError(
                f"there is no folder of label maps {folder!r}: --config.token_labels.maps names "
                "the folder with a file CLASS/NAME.pt or .npy for each training image CLASS/NAME.*"
            )
        self._shape = self._read(source[0]).shape

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        record = self._source[index]
        found = self._read(record)
        if found.shape != self._shape:
            raise UserError(
                f"the label map of {record['name']} is {list(found.shape)}, that of the first "
                f"image is {list(self._shape)}: all must have one shape"
            )
        return {**record, MAP: found, WINDOW: np.array([0, 0, 1, 1], np.float32)}

    def _read(self, record: Record) -> np.ndarray:
        label, name = record["label"], record["name"]
        if not isinstance(label, int):
            raise UserError(
                f"{name} has a list of labels; label maps are for images of one class each"
            )
        found = _FILE.search(name)
        file_name = name if found is None else found["tfds"] or found["tar"]
        stem = os.path.splitext(os.path.basename(file_name))[0]
        paths = [
            stores.join(self._folder, self.int2str(label), stem + suffix) for suffix in SUFFIXES
        ]
        path = next((path for path in paths if stores.is_file(path)), None)
        if path is None:
            raise UserError(f"there is no label map {' or '.join(paths)} for {name}")
        return read_map(path, self.num_classes)


def read_map(path: str, num_classes: int) -> np.ndarray:
    """The map in a file, float32 [2, M, H, W].

    Raises:
      UserError: if it cannot be read, or is no map of so many classes.
    """
    try:
        content = stores.read_bytes(path)
        found = np.load(io.BytesIO(content)) if path.endswith(".npy") else _tensor(content, path)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read the label map {path}: {error}") from error
    if (
        found.ndim != 4
        or len(found) not in (2, 3)
        or not found.size
        or found.dtype.kind not in "fiu"
    ):
        raise UserError(
            f"{path} is no label map: expected numbers [2, M, height, width], scores of the M best "
            f"classes and numbers of these classes, got {found.dtype} {list(found.shape)}"
        )
    scores, classes = found = found[:2].astype(np.float32)
    if not np.isfinite(scores).all():
        raise UserError(f"the label map {path} has scores that are NaN or infinite")
    if ((classes != np.floor(classes)) | (classes < 0) | (classes >= num_classes)).any():
        raise UserError(
            f"the label map {path} names classes from {classes.min():g} to {classes.max():g}; the "
            f"images have the classes 0 to {num_classes - 1}"
        )
    return found


def _tensor(content: bytes, path: str) -> np.ndarray:
    from vit_jax.checkpoint.files.torch import read_tensor

    return read_tensor(content, path)


def cropped(record: Record, top: int, left: int, height: int, width: int) -> Record:
    """The record of a window, in pixels of `record['image']`, which is still the whole image."""
    if WINDOW not in record:
        return record
    rows, columns = record["image"].shape[:2]
    x, y, w, h = record[WINDOW].astype(float)
    inside = x + left / columns * w, y + top / rows * h, width / columns * w, height / rows * h
    return {**record, WINDOW: np.array(inside, np.float32)}


def mirrored(record: Record) -> Record:
    """The record of an image whose left and right are swapped."""
    if WINDOW not in record:
        return record
    x, y, w, h = record[WINDOW]
    return {
        **record,
        MAP: record[MAP][..., ::-1],
        WINDOW: np.array([1 - x - w, y, w, h], np.float32),
    }


def moved(record: Record, image_size: tuple[int, int], move: Callable[[Any], Any]) -> Record:
    """The record of a whole image whose pixels were moved: rotated, sheared or shifted.

    Each place of the map takes what was at the pixel that came to its centre, and the score 0 where
    that was outside of the image.

    Args:
      record: A record of which no window was taken yet.
      image_size: (width, height) in pixels.
      move: What was done, as a function of an image of Pillow of mode 'I' and this size, which it
        must not interpolate, and where 0 comes in from outside.
    """
    if WINDOW not in record:
        return record
    from PIL import Image

    (columns, rows), (height, width) = image_size, record[MAP].shape[-2:]
    y, x = ((np.arange(side) + 0.5) / side for side in (rows, columns))
    places = (y * height).astype(np.int32)[:, None] * width + (x * width).astype(np.int32)
    came = np.asarray(move(Image.fromarray(places + 1)))  # 0 is outside
    y, x = ((np.arange(n) + 0.5) * side // n for n, side in ((height, rows), (width, columns)))
    source = came[np.ix_(y.astype(int), x.astype(int))]
    flat = record[MAP].reshape(*record[MAP].shape[:2], -1)
    taken = flat[:, :, np.maximum(source - 1, 0)]
    taken[0] = np.where(source > 0, taken[0], 0)
    return {**record, MAP: taken}


def kept(record: Record) -> Record:
    """What the last step of a preparation hands on of a record, beside image and label."""
    return {name: np.ascontiguousarray(record[name]) for name in (MAP, WINDOW) if name in record}

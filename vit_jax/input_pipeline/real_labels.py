"""ImageNet-ReaL: the validation images with all of their labels (Beyer et al. 2020).

"Are we done with ImageNet?" (arXiv:2006.07159) gives every validation image the classes that people
found in it: several, one or none. A prediction is right if it is any of these classes, and an image
without classes does not count. The paper's file `real.json` is a list of lists of class numbers;
its first list is for `ILSVRC2012_val_00000001`, and its last for `ILSVRC2012_val_00050000`.
"""

import json
import re
from collections.abc import Callable

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.input_pipeline.records import PathLike, Record, Source

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")


class RealLabels:
    """The records of a source of ImageNet's validation images, with the labels of `real.json`.

    Args:
      source: Folder, tar files or TFDS's `imagenet2012`. The images must have ImageNet's own file
        names, and the classes must be in the order of their WordNet ids.
      file: Path of `real.json`.

    Raises:
      UserError: if the file is missing or has another form, if a label is no class of the source,
        or if the name of an image does not tell the image's number.
    """

    def __init__(self, source: Source, file: PathLike):
        self._source, self._file = source, file
        self._labels = _read(file)
        self.num_classes: int = source.num_classes
        self.description = f"{source.description}, labels of {file}"
        self.int2str: Callable[[int], str] = source.int2str
        largest = max((label for labels in self._labels for label in labels), default=0)
        if largest >= source.num_classes:
            raise UserError(
                f"{file} has the class {largest}, the images only {source.num_classes} classes: "
                "expected all of ImageNet's validation images"
            )
        self[0]  # A source of other images fails here and not in the middle of a run.

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        name = record["name"]
        numbers = _NUMBER.findall(name)
        if not numbers or not 0 < int(numbers[-1]) <= len(self._labels):
            raise UserError(
                f"{self._file} has no labels for {name}: expected the name "
                f"ILSVRC2012_val_<number>, numbers up to {len(self._labels):08}"
            )
        return {**record, "label": list(self._labels[int(numbers[-1]) - 1])}


def _read(file: PathLike) -> list[list[int]]:
    try:
        labels = json.loads(stores.read_bytes(file))
    except OSError as error:
        raise UserError(f"cannot read the labels {file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON file: {error}") from error
    wrong = "no list" if not isinstance(labels, list) else _wrong(labels)
    if wrong is not None:
        raise UserError(
            f"{file} is no ImageNet-ReaL file: expected a list of lists of class numbers, one for "
            f"each validation image, got {wrong}"
        )
    return labels


def _wrong(labels: list) -> str | None:
    """A text about the first entry that is no list of class numbers; None if all are."""
    for i, row in enumerate(labels):
        if not isinstance(row, list) or not all(type(n) is int and n >= 0 for n in row):
            return f"{json.dumps(row)[:80]} for image {i + 1}"
    return None if any(labels) else "no label at all"

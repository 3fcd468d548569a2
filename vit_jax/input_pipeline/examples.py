"""Makes examples of a source's records, and replaces the examples of damaged images."""

import contextlib
import dataclasses
import functools
from typing import Literal

import numpy as np

from vit_jax.errors import UserError
from vit_jax.input_pipeline import transforms as tr
from vit_jax.input_pipeline.decode import DamagedImage
from vit_jax.input_pipeline.sources import Source
from vit_jax.patches import mapped

Example = dict[str, np.ndarray]
OnError = Literal["raise", "skip"]

# If this many images in a row are damaged, the dataset is taken for one of no images.
_MOST_DAMAGED = 100
# Fields of an example that are not for the model: the number of the record from which the search
# for a good image began, and the number of damaged records that were skipped.
RECORD, SKIPPED = "_record", "_skipped"


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Makes a training example from the number of a record.

    With `on_error='skip'` the next good image of the source takes the place of a damaged image. The
    augmentation of the good image draws from the same generator that the damaged image would have
    used, so that the example is the same in whichever process it is made.
    """

    source: Source
    transform: tr.Transform
    on_error: OnError

    def __call__(self, index: int, rng: np.random.Generator) -> Example:
        if self.on_error == "raise":
            return self.transform(dict(self.source[index]), rng)
        count = len(self.source)
        for skipped in range(min(count, _MOST_DAMAGED)):
            with contextlib.suppress(DamagedImage):
                record = dict(self.source[(index + skipped) % count])
                return {**self.transform(record, rng), **_origin(index, skipped)}
        raise _all_damaged(self.source, index)


class TestExamples:
    """The examples of a source with a mask, filled up to `length` with examples of zeros.

    A good example has mask 1. The filling after the last example, and with `on_error='skip'` an
    example whose image is damaged, are zeros with mask 0.
    """

    def __init__(self, source: Source, transform: tr.Transform, length: int, on_error: OnError):
        self._source, self._transform, self._length = source, transform, length
        self._on_error = on_error

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if index >= len(self._source):
            return {**self._blank, **self._origin(index, 0)}
        try:
            example = self._transform(dict(self._source[index]))
        except DamagedImage:
            if self._on_error == "raise":
                raise
            return {**self._blank, **self._origin(index, 1)}
        return {**example, "mask": np.ones((), np.float32), **self._origin(index, 0)}

    def _origin(self, index: int, skipped: int) -> Example:
        return _origin(index, skipped) if self._on_error == "skip" else {}

    @functools.cached_property
    def _blank(self) -> Example:
        for index in range(min(len(self._source), _MOST_DAMAGED)):
            try:
                example = self._transform(dict(self._source[index]))
            except DamagedImage:
                if self._on_error == "raise":
                    raise
                continue
            zeros = {name: mapped(np.zeros_like, value) for name, value in example.items()}
            return {**zeros, "mask": np.zeros((), np.float32)}
        raise _all_damaged(self._source, 0)


def _origin(index: int, skipped: int) -> Example:
    return {RECORD: np.array(index), SKIPPED: np.array(skipped)}


def _all_damaged(source: Source, index: int) -> UserError:
    return UserError(
        f"{min(len(source), _MOST_DAMAGED)} images in a row cannot be decoded, the first of them "
        f"{source[index]['name']}; is this a dataset of images?"
    )

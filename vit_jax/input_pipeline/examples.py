"""Examples made of a source's records, and what takes the place of damaged ones."""

import contextlib
import dataclasses
import functools
from typing import Literal

import numpy as np

from vit_jax.errors import UserError
from vit_jax.input_pipeline import transforms as tr
from vit_jax.input_pipeline.decode import DamagedImage
from vit_jax.input_pipeline.sources import Source

Example = dict[str, np.ndarray]
OnError = Literal["raise", "skip"]

# So many damaged images in a row are no accident.
_MOST_DAMAGED = 100
# Fields of an example that are not for the model: the record it is of, and how many were skipped.
RECORD, SKIPPED = "_record", "_skipped"


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Makes the example at a place in the stream from a record's number.

    In place of a damaged image stands the next good one in the source, with the same draws:
    whichever process makes the example, it is the same.
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
    """A source's examples with a mask; after the last, and for a damaged one, zeros with mask 0."""

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
            zeros = {name: np.zeros_like(value) for name, value in example.items()}
            return {**zeros, "mask": np.zeros((), np.float32)}
        raise _all_damaged(self._source, 0)


def _origin(index: int, skipped: int) -> Example:
    return {RECORD: np.array(index), SKIPPED: np.array(skipped)}


def _all_damaged(source: Source, index: int) -> UserError:
    return UserError(
        f"{min(len(source), _MOST_DAMAGED)} images in a row cannot be decoded, the first of them "
        f"{source[index]['name']}; is this a dataset of images?"
    )

"""Rows of one length, made of the pieces of texts."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.errors import UserError, short


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What a vocabulary makes of a text, and what stands around it.

    Attributes:
      encode: A text to the ids of its pieces.
      size: Entries of the vocabulary: every id is below it.
      first, last: Ids before and after the pieces, which a text that is cut keeps.
      fill: The id of the places that are left.
    """

    encode: Callable[[str], Sequence[int]]
    size: int
    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    fill: int = 0


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Makes rows of `length` numbers of texts: longer ones are cut, shorter ones are filled up."""

    pieces: Pieces
    length: int

    def __post_init__(self):
        least = len(self.pieces.first) + len(self.pieces.last) + 1
        if self.length < least:
            raise UserError(f"a text needs at least {least} tokens; got length={self.length}")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """A list of N texts to int32 [N, length].

        Raises:
          UserError: for something that is no list of texts.
        """
        if isinstance(texts, str | bytes):
            raise UserError(f"expected a list of texts, got one text: {short(repr(texts))}")
        rows = np.full((len(texts), self.length), self.pieces.fill, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = self._ids(text)
            row[: len(ids)] = ids
        return rows

    def _ids(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise UserError(f"expected texts, got {type(text).__name__}: {short(repr(text))}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"a text is no valid Unicode: {short(repr(text))}") from error
        first, last = self.pieces.first, self.pieces.last
        kept = self.pieces.encode(text)[: self.length - len(first) - len(last)]
        return [*first, *kept, *last]

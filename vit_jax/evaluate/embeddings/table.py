"""Embeddings that were written, to be read: also while others are still being written."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluate.embeddings import shards
from vit_jax.evaluate.embeddings.folder import Folder, Manifest
from vit_jax.evaluate.embeddings.shards import Rows


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What was finished of a folder of embeddings when it was opened.

    Attributes:
      folder: The folder.
      manifest: What is embedded in it.
      finished: The numbers of the finished shards, sorted.
    """

    folder: Folder
    manifest: Manifest
    finished: Sequence[int]

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> Self:
        """The embeddings in a folder, or at the address of one in a store.

        Raises:
          UserError: if there are none, or none is finished yet.
        """
        folder = Folder(place)
        manifest, finished = folder.manifest(), folder.finished()
        if not finished:
            raise UserError(f"{folder.place}: none of {manifest.shards} shards is finished yet")
        return cls(folder, manifest, finished)

    @property
    def missing(self) -> str:
        """What is not written yet, for people; '' where all is."""
        if len(self.finished) == self.manifest.shards:
            return ""
        there = self.manifest.count(self.finished)
        return (
            f"{self.folder.place} is not finished: {there:,} of {self.manifest.examples:,} "
            "examples are read"
        )

    @property
    def class_names(self) -> list[str]:
        """In the order of their numbers; empty where the data has no labels."""
        return list(self.manifest.data["classes"])

    def parts(self, name: str = "features") -> Iterator[Rows]:
        """The rows of one shard after the other, with the vectors of one kind.

        Raises:
          UserError: as `shards.read`.
        """
        for shard in self.finished:
            yield shards.read(self.folder, self.manifest, shard, name)

    def read(self, name: str = "features") -> Rows:
        """All rows in the order of their examples, with the vectors of one kind, [N, …].

        Raises:
          UserError: as `shards.read`.
        """
        parts = list(self.parts(name))
        return Rows(
            np.concatenate([part.index for part in parts]),
            [key for part in parts for key in part.keys],
            [label for part in parts for label in part.labels],
            {name: np.concatenate([part.vectors[name] for part in parts])},
        )

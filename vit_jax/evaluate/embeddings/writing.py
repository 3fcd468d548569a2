"""Embeds all examples of a source, each once, by any number of processes that may be killed."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluate import predictions
from vit_jax.evaluate.embeddings import shards
from vit_jax.evaluate.embeddings.folder import Entry, Folder, Manifest
from vit_jax.input_pipeline.classes import names_of
from vit_jax.input_pipeline.records import Source, has_several_labels

if TYPE_CHECKING:
    from vit_jax.evaluate.embeddings.embedder import Embedder

# If this many images in a row cannot be read, their disk or store is gone, or they are none.
MOST_UNREADABLE = 100
_ASKED = 64  # records whose names stand for all, where a source does not know them unread


def describe(source: Source) -> dict[str, Any]:
    """What tells data from other data: its names and labels, no pixels; see `Manifest.data`."""
    labels = getattr(source, "labels", None)
    names = getattr(source, "names", None)
    if names is None:
        step = max(1, len(source) // _ASKED)
        names = [source[index]["name"] for index in range(0, len(source), step)]
    found = hashlib.sha256()
    for text in itertools.chain(map(str, names), map(str, () if labels is None else labels)):
        found.update(text.encode("utf-8", "backslashreplace") + b"\n")
    if not source.num_classes:
        kind = "none"
    elif labels is not None:
        kind = "several" if isinstance(labels[0], list) else "one"
    else:
        kind = "several" if has_several_labels(source) else "one"
    return {
        "description": source.description,
        "examples": len(source),
        "digest": found.hexdigest()[:32],
        "classes": names_of(source),
        "labels": kind,
    }


def embed(
    embedder: "Embedder",
    source: Source,
    folder: Folder,
    manifest: Manifest,
    mine: Iterable[int],
    *,
    batch: int,
    on_error: str,
) -> Iterator[predictions.Read]:
    """Writes shards, and gives each example when it is written to its shard or left out.

    Args:
      embedder: The model.
      source: The data.
      folder, manifest: Where to, and what.
      mine: The shards to write, in their order.
      batch: Images that pass through the model at once.
      on_error: What becomes of an image that cannot be read: 'skip' leaves it out, and the journal
        names it; 'raise' ends with an error that does.

    Raises:
      UserError: as `on_error` says; and if many images in a row cannot be read.
    """
    mine = list(mine)
    numbers = list(itertools.chain.from_iterable(map(manifest.range, mine)))
    items = predictions.of_source(source, numbers)
    with _Shards(folder, manifest, mine) as out:
        unreadable = 0
        for reads, found in predictions.batches(embedder, items, batch=batch):
            for read in reads:
                unreadable = 0 if read.image is not None else unreadable + 1
                if read.error and (on_error == "raise" or unreadable == MOST_UNREADABLE):
                    raise UserError(_refusal(read, unreadable))
            vectors = {} if found is None else {k: np.asarray(x) for k, x in found.items()}
            out.add([numbers[read.number - 1] for read in reads], reads, vectors)
            yield from reads


def _refusal(read: predictions.Read, unreadable: int) -> str:
    if unreadable == MOST_UNREADABLE:
        return f"{unreadable} images in a row cannot be read, the last: {read.error}"
    return f"{read.error}. Mend it and give the same command to go on, or --on-error=skip"


class _Shards:
    """Writes rows to the shard that they belong to, one shard after the other."""

    def __init__(self, folder: Folder, manifest: Manifest, mine: list[int]):
        self._folder, self._manifest = folder, manifest
        self._coming = iter(mine)
        self._writer: shards.Writer | None = None
        self._shard, self._rows = 0, 0
        self._left_out: list[list[Any]] = []

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:  # It fails in the middle of a shard, whose files go.
            self._writer.__exit__(*error)

    def add(self, index: list[int], reads: list[predictions.Read], vectors: Any) -> None:
        """Adds examples with what was computed of the readable ones, in their order."""
        start, row = 0, 0
        while start < len(index):
            if self._writer is None:
                self._begin(index[start])
            size = min(len(index) - start, self._manifest.range(self._shard).stop - index[start])
            part = list(zip(index, reads, strict=True))[start : start + size]
            good = [(number, read) for number, read in part if read.image is not None]
            self._write(good, {k: x[row : row + len(good)] for k, x in vectors.items()})
            self._left_out += [[n, r.name, r.error] for n, r in part if r.image is None]
            start, row = start + size, row + len(good)
            if index[start - 1] + 1 == self._manifest.range(self._shard).stop:
                self._finish()

    def _begin(self, first: int) -> None:
        self._shard = next(self._coming)
        assert first == self._manifest.range(self._shard).start, "examples come shard by shard"
        self._folder.clear(self._shard)
        self._rows, self._left_out = 0, []
        self._writer = shards.writer(self._folder, self._manifest, self._shard).__enter__()

    def _write(self, good: list[tuple[int, predictions.Read]], vectors: Any) -> None:
        if not good:
            return
        assert self._writer is not None
        labelled = self._manifest.data["labels"] != "none"
        self._rows += len(good)
        self._writer.write(
            shards.Rows(
                np.array([number for number, _ in good], np.int64),
                [read.name.encode("utf-8", "backslashreplace").decode() for _, read in good],
                [read.beside["label"] if labelled else None for _, read in good],
                vectors,
            )
        )

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        assert writer is not None
        writer.__exit__(None, None, None)
        self._folder.finish(self._shard, Entry(self._rows, self._left_out))

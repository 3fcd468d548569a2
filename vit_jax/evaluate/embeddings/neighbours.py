"""The nearest embeddings to a vector, of any number of them, and their pictures."""

import dataclasses
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.evaluate.embeddings.table import Embeddings
from vit_jax.input_pipeline.records import Record, Source, read_image


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """An example that is near.

    Attributes:
      index: Its number in the data.
      key: What it is called: the path of a file, or what its dataset calls it.
      classes: The names of its classes, with commas between them; '' without.
      similarity: The cosine of its vector and the one that was asked for, -1 to 1.
    """

    index: int
    key: str
    classes: str
    similarity: float


def nearest(embeddings: Embeddings, queries: np.ndarray, k: int) -> list[list[Neighbour]]:
    """The `k` examples with the largest cosine to each query, the nearest first.

    One shard is held in memory at a time. Of equals, the first in the data comes first.

    Args:
      embeddings: With vectors called 'features', [D] each.
      queries: [N, D].
      k: How many; fewer where there are fewer examples.

    Raises:
      UserError: for a number below 1, for vectors of another size, and as `shards.read`.
    """
    if k < 1:
        raise UserError(f"expected at least 1 neighbour; got {k}")
    queries = _unit(queries)
    best: list[list[Neighbour]] = [[] for _ in queries]
    names = embeddings.class_names
    for rows in embeddings.parts():
        vectors = rows.vectors["features"]
        if vectors.shape[1:] != queries.shape[1:]:
            raise UserError(
                f"{embeddings.folder.place} has vectors of {list(vectors.shape[1:])} numbers; the "
                f"model gives {list(queries.shape[1:])}"
            )
        cosines = queries @ _unit(vectors).T
        for one, found in zip(cosines, best, strict=True):
            for row in np.argsort(-one, kind="stable")[:k].tolist():
                label = rows.labels[row]
                labels = [] if label is None else label if isinstance(label, list) else [label]
                classes = ", ".join(names[number] for number in labels)
                index = int(rows.index[row])
                found.append(Neighbour(index, rows.keys[row], classes, float(one[row])))
            found.sort(
                key=lambda n: -n.similarity
            )  # stable: of equals the earlier shard's is first
            del found[k:]
    return best


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.maximum(norm, np.finfo(x.dtype).tiny)


class Pictures:
    """The images of examples, from their files or from the data that was embedded.

    Args:
      embeddings: The examples.
    """

    def __init__(self, embeddings: Embeddings):
        self._embeddings = embeddings
        self._source: Source | None = None

    def record(self, neighbour: Neighbour) -> Record:
        """The stored example.

        Raises:
          UserError: if it is not where it was when it was embedded.
        """
        if stores.is_file(neighbour.key):
            return {"image": read_image(neighbour.key), "label": [], "name": neighbour.key}
        if self._source is None:
            self._source = self._opened()
        return self._source[neighbour.index]

    def _opened(self) -> Source:
        from vit_jax.evaluate.embeddings.writing import describe
        from vit_jax.input_pipeline.inputs import STDIN, open_images

        data: Any = self._embeddings.manifest.data
        if STDIN in data["inputs"]:
            raise UserError("the paths that came on standard input are not there, seen from here")
        source = open_images(
            data["inputs"], data["split"], data_dir=data["tfds_data_dir"], labels=True
        )
        if describe(source)["digest"] != data["digest"]:
            raise UserError(
                f"{source.description} is not the data that was embedded: its names or labels "
                "have changed, so that no neighbour can be drawn"
            )
        return source

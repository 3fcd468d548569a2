"""The likeliest classes of a stream of images, in their order, with little memory."""

import collections
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.inference import LoadedModel
    from vit_jax.input_pipeline.records import Record, Source

T = TypeVar("T")
R = TypeVar("R")


class Item(NamedTuple):
    """An image that is to be read: its name, and what reads its record when its turn comes."""

    name: str
    read: "Callable[[], Record]"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image.

    Attributes:
      number: Place of the image in the stream, from 1.
      path: The image's name: the path of its file, or what its dataset calls it.
      labels: Numbers of the likeliest classes, likeliest first; empty for an image without one.
      probabilities: What the model gives to each of these classes, 0 to 1.
      error: Why the image could not be read; '' where it could.
    """

    number: int
    path: str
    labels: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


class _Read(NamedTuple):
    """An image as it was read; None with the reason where it could not be."""

    number: int
    name: str
    image: np.ndarray | None
    error: str


def of_files(paths: Iterable[str]) -> Iterator[Item]:
    """The image files of these paths."""
    from vit_jax.input_pipeline.records import read_image

    for path in paths:
        yield Item(path, lambda path=path: {"image": read_image(path), "label": 0, "name": path})


def of_source(source: "Source") -> Iterator[Item]:
    """The images of a dataset, in its order."""
    for index in range(len(source)):
        yield Item(f"example {index}", lambda index=index: source[index])


def predict(
    loaded: "LoadedModel", items: Iterable[Item], *, top: int = 1, batch: int = 32
) -> Iterator[Prediction]:
    """The `top` likeliest classes of each image, in the order of `items`.

    Threads read the next images while the model computes; about four batches of images are held at
    a time. An image that is missing or damaged gets a prediction without classes.

    Args:
      loaded: The model.
      items: Images, taken one by one.
      top: How many classes of each; a model with fewer gives all.
      batch: Images that pass through the model at once; fewer if there are fewer in all.
    """
    numbered = enumerate(items, 1)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        images = _ahead(pool, lambda item: _read(loaded, *item), numbered, window=2 * batch)
        waiting: tuple[list[_Read], Any] | None = None
        size = None
        for reads in _groups(images, batch):
            good = [read.image for read in reads if read.image is not None]
            size = size or min(batch, max(len(good), 1))
            # Dispatched, and waited for only after the next batch is: the device is never idle.
            logits = loaded.dispatch(_filled(good, size)) if good else None
            if waiting is not None:
                yield from _ranked(*waiting, top)
            waiting = reads, logits
        if waiting is not None:
            yield from _ranked(*waiting, top)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], window: int
) -> Iterator[R]:
    """`function` of each item, in their order, computed up to `window` items ahead."""
    items, futures = iter(items), collections.deque()
    futures.extend(pool.submit(function, item) for item in itertools.islice(items, window))
    while futures:
        done = futures.popleft().result()
        futures.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
        yield done


def _read(loaded: "LoadedModel", number: int, item: Item) -> _Read:
    name = item.name
    try:
        record = item.read()
        name = record.get("name", name)
        pixels = loaded.decode(record)
    except UserError as error:
        return _Read(number, name, None, str(error))
    return _Read(number, name, loaded.preprocess(pixels), "")


def _groups(reads: Iterable[_Read], batch: int) -> Iterator[list[_Read]]:
    """The images in parts of `batch` good ones, with the others between them."""
    group, good = [], 0
    for read in reads:
        group.append(read)
        good += read.image is not None
        if good == batch:
            yield group
            group, good = [], 0
    if group:
        yield group


def _filled(images: list[np.ndarray], size: int) -> np.ndarray:
    """[size, H, W, C]: the images, and zeros after them, so that one program serves every batch."""
    filled = np.zeros((size, *images[0].shape), images[0].dtype)
    np.stack(images, out=filled[: len(images)])
    return filled


def _ranked(reads: list[_Read], logits: Any, top: int) -> Iterator[Prediction]:
    rows = iter(() if logits is None else softmax(np.asarray(logits)))
    for read in reads:
        if read.image is None:
            yield Prediction(read.number, read.name, error=read.error)
            continue
        row = next(rows)
        best = (-row).argsort(kind="stable")[:top]
        labels, probabilities = map(int, best), map(float, row[best])
        yield Prediction(read.number, read.name, tuple(labels), tuple(probabilities))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    logits = logits.astype(np.float64)
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)

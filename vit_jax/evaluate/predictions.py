"""The likeliest classes of a stream of images, in their order, with little memory."""

import collections
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from vit_jax.errors import UserError
from vit_jax.patches import mapped, stacked

if TYPE_CHECKING:
    from vit_jax.inference import Classifier, ImageReader
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


class Read(NamedTuple):
    """An image as it was read.

    Attributes:
      number: Place of the image in the stream, from 1.
      name: The path of its file, or what its dataset calls it.
      image: As `ImageReader.preprocess` gives it; None where it could not be read.
      error: Why it could not be read; else ''.
      beside: What else its record holds.
    """

    number: int
    name: str
    image: Any
    error: str
    beside: Mapping[str, Any]


def of_source(source: "Source", indices: Iterable[int] | None = None) -> Iterator[Item]:
    """The images of a dataset, in its order, or those of the given numbers in theirs."""
    names = getattr(source, "names", None)  # which some sources know before they read a record
    for index in range(len(source)) if indices is None else indices:
        name = f"example {index}" if names is None else names[index]
        yield Item(name, lambda index=index: source[index])


def predict(
    loaded: "Classifier", items: Iterable[Item], *, top: int = 1, batch: int = 32
) -> Iterator[Prediction]:
    """The `top` likeliest classes of each image, in the order of `items`.

    An image that is missing or damaged gets a prediction without classes.

    Args:
      loaded, items, batch: As for `rows`.
      top: How many classes of each; a model with fewer gives all.
    """
    for read, row in rows(loaded, items, batch=batch):
        if row is None:
            yield Prediction(read.number, read.name, error=read.error)
            continue
        probabilities = loaded.probabilities_of(row)
        labels = (-probabilities).argsort(kind="stable")[:top]
        given = map(float, probabilities[labels])
        yield Prediction(read.number, read.name, tuple(map(int, labels)), tuple(given))


def rows(
    reader: "ImageReader", items: Iterable[Item], *, batch: int = 32
) -> Iterator[tuple[Read, np.ndarray | None]]:
    """Each image with its row of what the model gives, in the order of `items`.

    An image that is missing or damaged has no row.

    Args:
      reader, items, batch: As for `batches`.
    """
    for reads, found in batches(reader, items, batch=batch):
        yield from _with_rows(reads, found)


def batches(
    reader: "ImageReader", items: Iterable[Item], *, batch: int = 32
) -> Iterator[tuple[list[Read], Any]]:
    """The images in their order, in parts, each with what the model gives for those it could read.

    Threads read the next images while the model computes; about four batches of images are held at
    a time. What the model gives may still be computed when it comes; its rows are those of the
    part's readable images in their order, and filling behind them. A part without a readable image
    has None.

    Args:
      reader: The model.
      items: Images, taken one by one.
      batch: Images that pass through the model at once; fewer if there are fewer in all.
    """
    numbered = enumerate(items, 1)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        images = _ahead(pool, lambda item: _read(reader, *item), numbered, window=2 * batch)
        waiting: tuple[list[Read], Any] | None = None
        size = None
        for reads in _groups(images, batch):
            good = [read.image for read in reads if read.image is not None]
            size = size or min(batch, max(len(good), 1))
            # Dispatched, and waited for only after the next batch is: the device is never idle.
            found = reader.dispatch(_filled(good, size)) if good else None
            if waiting is not None:
                yield waiting
            waiting = reads, found
        if waiting is not None:
            yield waiting


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


def _read(reader: "ImageReader", number: int, item: Item) -> Read:
    name = item.name
    try:
        record: dict[str, Any] = {**item.read()}
        name = record.get("name", name)
        pixels = reader.decode(record)
    except UserError as error:
        return Read(number, name, None, str(error), {})
    del record["image"]
    return Read(number, name, reader.preprocess(pixels), "", record)


def _groups(reads: Iterable[Read], batch: int) -> Iterator[list[Read]]:
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


def _filled(images: list[Any], size: int) -> Any:
    """A batch of `size`: the images, and zeros after them, so that one program serves all."""
    return stacked(images + [mapped(np.zeros_like, images[0])] * (size - len(images)))


def _with_rows(reads: list[Read], found: Any) -> Iterator[tuple[Read, np.ndarray | None]]:
    computed = iter(() if found is None else np.asarray(found))
    for read in reads:
        yield read, None if read.image is None else next(computed)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The probability of each class on its own, in float64."""
    # Of the two forms the one whose exponential cannot overflow.
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1, small) / (1 + small)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    logits = logits.astype(np.float64)
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)

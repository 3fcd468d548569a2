"""Images per second and core of decode + inception crop + flip + resize to 224.

    python benchmarks/input_pipeline.py [--rounds 7] [--workers 1 2 4] [--check]

The images are 500 × 375 JPEGs cut from scikit-learn's two photographs, ImageNet's usual size. The
bare loops draw the same windows and do the same work with Pillow alone and with OpenCV alone, in
one thread, without Grain, batching or checks. The rows take turns, round by round, so that a busy
machine is busy for all of them, and a row's speed is by the time its own processor spent: images
per second and core. The ratio is the median over rounds of that to the faster bare loop.

`--check` exits with 1 if the transform alone falls below 0.95.
"""

import argparse
import io
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from vit_jax.configs import common
from vit_jax.input_pipeline import loader, recipes
from vit_jax.input_pipeline.transforms import InceptionCrop

SIZE, BATCH, IMAGES, CHUNK = 224, 32, 64, 128
LEAST = 0.95


class Photos:
    """Encoded crops in memory: the disk is not what is measured."""

    num_classes = 2
    int2str = staticmethod(str)

    def __init__(self):
        self.images, rng = [], np.random.default_rng(0)
        for i in range(IMAGES):
            photo = load_sample_images().images[i % 2]
            top, left = rng.integers(427 - 375 + 1), rng.integers(640 - 500 + 1)
            buffer = io.BytesIO()
            window = photo[top : top + 375, left : left + 500]
            Image.fromarray(window).save(buffer, "jpeg", quality=90)
            self.images.append(buffer.getvalue())

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int):
        return {"image": self.images[index], "label": index % 2, "name": str(index)}


def bare(photos: Photos, augment: Callable) -> Iterator[int]:
    rng, crop = np.random.default_rng(0), InceptionCrop(SIZE)
    for i in itertools.count():
        window = crop.window(375, 500, rng)
        image = augment(photos.images[i % IMAGES], *window)
        if rng.random() < 0.5:
            image = image[:, ::-1]
        (np.ascontiguousarray(image, np.float32) - 127.5) / 127.5
        yield 1


def with_pillow(encoded: bytes, top: int, left: int, height: int, width: int) -> np.ndarray:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box))


def with_opencv(encoded: bytes, top: int, left: int, height: int, width: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    window = image[top : top + height, left : left + width].astype(np.float32)
    return cv2.resize(window, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def transform():
    pp = common.get_config().pp
    pp.crop = SIZE
    return recipes.train_transform(pp, num_classes=2)


def alone(photos: Photos) -> Iterator[int]:
    """Our transform in a bare loop, with all its checks."""
    rng, ours = np.random.default_rng(0), transform()
    for i in itertools.count():
        ours(photos[i % IMAGES], rng)
        yield 1


def dataset(photos: Photos, num_workers: int) -> loader.TrainDataset:
    reading = loader.Reading(num_workers)
    return loader.TrainDataset(photos, transform(), batch_size=BATCH, seed=0, reading=reading)


def with_grain(train: loader.TrainDataset) -> Iterator[int]:
    """Streams of `CHUNK` images, so that no thread works ahead at another row's expense."""
    while True:
        for batch in loader._read(train._examples[:CHUNK], BATCH, train._reading):
            yield len(batch["image"])


def take(stream: Iterator[int], count: int) -> None:
    while count > 0:
        count -= next(stream)


def cost(stream: Iterator[int]) -> float:
    """Processor seconds of this process for an image."""
    start = time.process_time()
    take(stream, CHUNK)
    return (time.process_time() - start) / CHUNK


def compare(photos: Photos, rounds: int) -> float:
    """Prints images per second and core of each row; returns the transform's own ratio."""
    rows = {
        "bare Pillow (antialiased)": bare(photos, with_pillow),
        "bare OpenCV": bare(photos, with_opencv),
        "vit_jax, transform alone": alone(photos),
        "vit_jax, Grain and batches": with_grain(dataset(photos, 0)),
    }
    for stream in rows.values():
        take(stream, CHUNK)
    costs = [{name: cost(s) for name, s in rows.items()} for _ in range(rounds)]
    ratios = {}
    for name in rows:
        best = [min(c[bare] for bare in c if bare.startswith("bare")) for c in costs]
        ratio = [b / c[name] for b, c in zip(best, costs, strict=True)]
        speed = 1 / statistics.median(c[name] for c in costs)
        ratios[name] = statistics.median(ratio)
        print(f"{name:28} {speed:6.0f} images/s/core  {ratios[name]:5.2f} x the faster bare loop")
    ours, grain = ratios["vit_jax, transform alone"], ratios["vit_jax, Grain and batches"]
    print(f"Grain, batching and its threads cost {1 - grain / ours:.0%}")
    return ours


def scaling(photos: Photos, workers: list[int], seconds: float) -> None:
    """Prints images per second by the clock, for threads and for numbers of worker processes."""
    for count in [0, *workers]:
        with dataset(photos, count).iterate() as batches:
            for _ in range(2 * max(count, 1)):
                next(batches)
            start, images = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                images += len(next(batches)["image"])
            speed = images / (time.perf_counter() - start)
        name = f"{count} worker processes" if count else "threads"
        print(f"vit_jax, {name:19} {speed:6.0f} images/s by the clock")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)  # As in the worker processes.
    photos = Photos()
    ours = compare(photos, arguments.rounds)
    scaling(photos, arguments.workers, arguments.seconds)
    return int(arguments.check and ours < LEAST)


if __name__ == "__main__":
    sys.exit(main())

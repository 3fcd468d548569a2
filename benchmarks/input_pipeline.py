"""Images per second and core of decode + inception crop + flip + resize to 224.

    python benchmarks/input_pipeline.py [--rounds 7] [--workers 1 2 4] [--check]

The images are 500 × 375 JPEGs cut from scikit-learn's two photographs, ImageNet's usual size. The
bare loops draw the same windows and do the same work with Pillow alone and with OpenCV alone, in
one thread, without Grain, batching or checks. The rows take turns, round by round, so that a busy
machine is busy for all of them, and a row's speed is by the time its own processor spent: images
per second and core. The ratio is the median over rounds of that to the faster bare loop. Whole
streams, made by threads or worker processes, are set against bare OpenCV between their turns.

`--check` exits with 1 if the transform alone falls below 0.95.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from vit_jax.configs import common
from vit_jax.input_pipeline import loader, recipes, streams
from vit_jax.input_pipeline.sources import Record
from vit_jax.input_pipeline.transforms import InceptionCrop

SIZE, BATCH, CHUNK = 224, 32, 128
# Different images, and records: Grain's shuffle takes far longer for an index of few than of many.
IMAGES, RECORDS = 64, 1_281_167
LEAST = 0.95


class Photos:
    """Encoded crops in memory: the disk is not what is measured."""

    num_classes = 2

    @staticmethod
    def int2str(label: int) -> str:
        return str(label)

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
        return RECORDS

    def __getitem__(self, index: int) -> Record:
        return {"image": self.images[index % IMAGES], "label": index % 2, "name": str(index)}


def bare(photos: Photos, augment: Callable) -> Iterator[int]:
    rng, crop = np.random.default_rng(0), InceptionCrop(SIZE)
    for i in itertools.count():
        window = crop.window(375, 500, rng)
        image = augment(photos.images[i % IMAGES], *window, rng.random() < 0.5)
        image -= np.float32(127.5)
        image /= np.float32(127.5)
        yield 1


def with_pillow(
    encoded: bytes, top: int, left: int, height: int, width: int, flip: bool
) -> np.ndarray:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    box = (left, top, left + width, top + height)
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).astype(np.float32)


def with_opencv(
    encoded: bytes, top: int, left: int, height: int, width: int, flip: bool
) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    window = image[top : top + height, left : left + width].astype(np.float32)
    image = cv2.resize(window, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(image, 1) if flip else image


def transform():
    pp = common.get_config().pp
    pp.crop = SIZE
    return recipes.train_transform(pp, num_classes=2)


def alone(photos: Photos) -> Iterator[int]:
    """Our transform in a bare loop, with all its checks."""
    rng, ours = np.random.default_rng(0), transform()
    for i in itertools.count():
        ours(photos[i], rng)
        yield 1


def dataset(photos: Photos, num_workers: int) -> loader.TrainDataset:
    reading = loader.Reading(num_workers)
    return loader.TrainDataset(photos, transform(), batch_size=BATCH, seed=0, reading=reading)


def with_grain(train: loader.TrainDataset) -> Iterator[int]:
    """Streams of `CHUNK` images, so that no thread works ahead at another row's expense."""
    while True:
        for batch in streams.Batches(train._examples[:CHUNK], BATCH, train._reading):
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


def spent() -> float:
    """Processor seconds of this process and its workers (of Linux; elsewhere without these)."""
    seconds = time.process_time()
    for worker in multiprocessing.active_children():
        stat = Path(f"/proc/{worker.pid}/stat")
        if stat.exists():
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds


def run(photos: Photos, num_workers: int, seconds: float) -> tuple[float, float]:
    """Images per second by the clock, and processor seconds for an image, of a whole stream."""
    with dataset(photos, num_workers).iterate() as batches:
        for _ in range(4 * max(num_workers, 1)):
            next(batches)
        start, before, images = time.perf_counter(), spent(), 0
        while time.perf_counter() - start < seconds:
            images += len(next(batches)["image"])
        return images / (time.perf_counter() - start), (spent() - before) / images


def scaling(photos: Photos, workers: list[int], rounds: int, seconds: float) -> None:
    """Prints the speed of whole streams, made by threads and by numbers of worker processes."""
    stream, counts = bare(photos, with_opencv), [0, *workers]
    take(stream, CHUNK)
    runs = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            runs[count].append((*run(photos, count, seconds), cost(stream)))
    for count, rows in runs.items():
        by_clock, each, ratio = (
            statistics.median(values)
            for values in zip(*((c, e, b / e) for c, e, b in rows), strict=True)
        )
        print(
            f"{f'{count} worker processes' if count else 'threads':28} {1 / each:6.0f} "
            f"images/s/core  {ratio:5.2f} x bare OpenCV, {by_clock:6.0f} images/s by the clock"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scaling-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)  # The worker processes do the same.
    photos = Photos()
    ours = compare(photos, arguments.rounds)
    scaling(photos, arguments.workers, arguments.scaling_rounds, arguments.seconds)
    return int(arguments.check and ours < LEAST)


if __name__ == "__main__":
    sys.exit(main())

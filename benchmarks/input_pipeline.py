"""Images per second of decode + inception crop + flip + resize to 224, against bare loops.

    python benchmarks/input_pipeline.py [--seconds 4] [--workers 2]

The images are 500 × 375 JPEGs cut from scikit-learn's two photographs, ImageNet's usual size. The
bare loops draw the same windows and do the same work with Pillow alone and with OpenCV alone, in
one thread, without Grain, batching or checks; the ratio is to the faster of them.
"""

import argparse
import io
import itertools
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from vit_jax.input_pipeline import loader
from vit_jax.input_pipeline.transforms import InceptionCrop

SIZE, BATCH, IMAGES = 224, 32, 64


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


def ours(photos: Photos, num_workers: int) -> Iterator[int]:
    transform = loader.train_transform(augment="inception", crop=SIZE, resize=None, num_classes=2)
    dataset = loader.TrainDataset(
        photos, transform, batch_size=BATCH, seed=0, reading=loader.Reading(num_workers)
    )
    return (len(batch["image"]) for batch in dataset)


def speed(stream: Iterator[int], seconds: float) -> float:
    """Images per second after a warm-up batch."""
    for _ in range(BATCH):
        next(stream)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += next(stream)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    photos = Photos()
    rows = {
        "bare Pillow (antialiased)": bare(photos, with_pillow),
        "bare OpenCV": bare(photos, with_opencv),
        "vit_jax, threads": ours(photos, 0),
        f"vit_jax, {arguments.workers} workers": ours(photos, arguments.workers),
    }
    speeds = {name: speed(stream, arguments.seconds) for name, stream in rows.items()}
    best = max(rate for name, rate in speeds.items() if name.startswith("bare"))
    for name, rate in speeds.items():
        print(f"{name:28} {rate:7.0f} images/s  {rate / best:5.2f} x the faster bare loop")


if __name__ == "__main__":
    main()

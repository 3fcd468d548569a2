"""Batches of numbers in place of images, to see the order in which a loader reads."""

import numpy as np

from vit_jax.input_pipeline.loader import Reading, TrainDataset


class Numbers:
    """A source whose example i is the number i."""

    num_classes = 3
    int2str = staticmethod(str)
    description = "numbers"

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return {"image": b"", "label": index % 3, "name": str(index)}


class Number:
    """The transform of `Numbers`: (number, a random draw)."""

    def __call__(self, record, rng=None):
        draw = rng.random() if rng else 0.0
        image = np.array([float(record["name"]), draw])
        return {"image": image, "label": np.eye(3, dtype=np.float32)[record["label"]]}


class Big:
    """Examples that are worth sharing memory for."""

    def __call__(self, record, rng=None):
        return {"image": np.full((64, 64, 3), 1, np.float32), "label": np.zeros(3, np.float32)}


def train(count: int, batch_size: int, seed: int = 0, **reading) -> TrainDataset:
    source, transform = Numbers(count), Number()
    return TrainDataset(
        source, transform, batch_size=batch_size, seed=seed, reading=Reading(**reading)
    )

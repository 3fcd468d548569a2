"""Batches that ruin a run, and signals at a chosen moment of it."""

import contextlib
import os
import signal
import time
from collections.abc import Mapping

import numpy as np
import pytest

from vit_jax.input_pipeline.loader import TestDataset, TrainDataset
from vit_jax.train.checkpointing import Checkpoints


@contextlib.contextmanager
def labels(factors: Mapping[int, float]):
    """Multiplies the labels of each batch whose number is given, and with them its loss.

    'met' of what this yields lists the numbers of all batches in the order in which they were read.
    """
    iterate, met = TrainDataset.iterate, []

    class Stream(contextlib.AbstractContextManager):
        def __init__(self, dataset, start=0):
            self._inner, self._number = iterate(dataset, start), start - 1
            self._vectors = np.eye(dataset.num_classes, dtype=np.float32)

        def __iter__(self):
            return self

        def __next__(self):
            batch = next(self._inner)
            self._number += 1
            met.append(self._number)
            factor = np.float32(factors.get(self._number, 1.0))
            return {**batch, "label": self._vectors[batch["label"]] * factor}

        def __exit__(self, *exc_info):
            self._inner.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainDataset, "iterate", lambda dataset, start=0: Stream(dataset, start))
        yield met


@contextlib.contextmanager
def signal_in_evaluation(which: int, pause: float = 0.0):
    """Sends SIGTERM to this process amid its evaluation number `which`, counted from 0.

    Several processes take a second or two to agree that they were told: until then, `pause`
    seconds before each batch let the evaluation last.
    """
    iterate, made = TestDataset.__iter__, []

    def batches(dataset):
        made.append(None)
        for place, batch in enumerate(iterate(dataset)):
            if place == 1 and len(made) == which + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if place and len(made) == which + 1:
                time.sleep(pause)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TestDataset, "__iter__", batches)
        yield


@contextlib.contextmanager
def signal_in_save(step: int):
    """Sends SIGTERM to this process while it saves `step`."""
    save = Checkpoints.save

    def saving(self, state, *more):
        if int(state.step) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        save(self, state, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", saving)
        yield

"""Batches through memory that is used again, and streams that end."""

import errno
import os

import grain
import numpy as np
import pytest
from number_batches import train

from vit_jax.errors import UserError
from vit_jax.input_pipeline import shared_batches
from vit_jax.input_pipeline.shared_batches import Inbox, Outbox, Sent


@pytest.fixture
def place():
    with shared_batches.directory() as name:
        yield name


def examples(count: int, fill: float, side: int = 3) -> list[dict[str, np.ndarray]]:
    return [
        {
            "image": np.full((side, side, 1), fill + i, np.float32),
            "label": np.arange(5, dtype=np.float32),
            "mask": np.ones((), np.float32),
            "_record": np.array(i),
        }
        for i in range(count)
    ]


def outbox(place, *batches) -> Outbox:
    parts = [example for batch in batches for example in batch]
    return Outbox(grain.MapDataset.source(parts), len(batches[0]), place)


def assert_whole(batch, parts) -> None:
    assert batch.keys() == parts[0].keys()
    for name, value in batch.items():
        expected = np.stack([part[name] for part in parts])
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)


def test_a_piece_is_used_again_once_it_was_read(place):
    batches = [examples(4, 10 * i) for i in range(20)]
    box, inbox = outbox(place, *batches), Inbox()
    assert len(box) == 20
    sent: list[Sent] = [box[0], box[1]]  # Both on their way.
    assert len({one.path for one in sent}) == 2
    first = inbox.open(sent[0])
    third = box[2]
    assert third.path == sent[0].path
    second = inbox.open(sent[1])
    assert_whole(inbox.open(third), batches[2])
    # What was read before has not been written over.
    assert_whole(first, batches[0])
    assert_whole(second, batches[1])
    for i in range(3, 20):
        assert_whole(inbox.open(box[i]), batches[i])
    assert len(box._pieces) == len(inbox._pieces) == 2
    assert os.listdir(place) == []  # Nothing that could outlive a killed run.


def test_a_larger_batch_takes_a_larger_piece(place):
    small, large = examples(2, 0, side=3), examples(2, 7, side=30)
    box, inbox = outbox(place, small, large, small), Inbox()
    for i, batch in enumerate((small, large, small)):
        assert_whole(inbox.open(box[i]), batch)
    assert len(box._pieces) == 2


@pytest.mark.parametrize("side", [1, 4])
def test_an_example_of_another_shape_is_refused(place, side):
    with pytest.raises(ValueError, match="shape"):
        outbox(place, [*examples(1, 0, side=3), *examples(1, 0, side=side)])[0]


def test_no_memory_is_one_clear_message(place, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared_batches, "_allocate", full)
    with pytest.raises(UserError, match=r"no memory in .* for a batch of \d+ bytes: No space left"):
        outbox(place, examples(4, 0))[0]


def test_a_stream_of_workers_keeps_its_pieces_few():
    with train(50, 8, num_workers=2, prefetch=2).iterate() as stream:
        batches = [next(stream) for _ in range(40)]
        assert stream._inbox is not None
        # Five of a worker are on their way at most, in the making or in Grain's queues.
        assert len(stream._inbox._pieces) <= 2 * 6
    with train(50, 8).iterate() as threads:
        for batch, expected in zip(batches, threads, strict=False):
            np.testing.assert_array_equal(batch["image"], expected["image"])

"""Items made ahead by a thread: their order, errors, and the thread's end."""

import itertools
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from vit_jax.devices.ahead import Ahead
from vit_jax.devices.sharding import make_mesh, split_batch, to_devices
from vit_jax.errors import UserError


def threads() -> int:
    return threading.active_count()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def counted(made: list[int]):
    for i in itertools.count():
        made.append(i)
        yield i


@pytest.mark.parametrize("count", [1, 2, 5])
def test_order_and_number_ahead(count):
    made: list[int] = []
    before = threads()
    with Ahead(counted(made), count) as ahead:
        for taken in range(4):
            wait_for(lambda taken=taken: len(made) == taken + count)
            assert next(ahead) == taken
    assert threads() == before
    assert len(made) <= 4 + count
    assert list(ahead) == []


def test_the_end_and_an_error_come_in_their_place():
    def items():
        yield from (1, 2)
        raise UserError("the third is damaged")

    before = threads()
    ahead = Ahead(items(), 5)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(UserError, match="the third is damaged"):
        next(ahead)
    assert list(ahead) == []
    assert list(Ahead(range(3), 2)) == [0, 1, 2]
    assert threads() == before


def test_forgetting_it_ends_the_thread():
    before = threads()
    ahead = Ahead(itertools.count(), 2)
    assert next(ahead) == 0
    assert threads() == before + 1
    del ahead
    assert threads() == before


def test_ctrl_c_while_waiting():
    """The interrupt is raised where the item is waited for, and closing does not hang."""
    stuck = threading.Event()

    def items():
        yield 0
        stuck.wait()
        yield 1

    before = threads()
    ahead = Ahead(items(), 1)
    assert next(ahead) == 0
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(ahead)
    timer.join()
    stuck.set()
    ahead.close()
    assert threads() == before


def test_batches_lie_on_the_devices():
    sharding = split_batch(make_mesh({"data": 4}))
    batches = [{"image": np.full((8, 2), i, np.uint8), "label": np.arange(8)} for i in range(3)]
    before = threads()
    with to_devices(batches, sharding, 0) as on_devices:
        for batch, expected in zip(on_devices, batches, strict=True):
            assert all(x.sharding == sharding for x in jax.tree.leaves(batch))
            jax.tree.map(np.testing.assert_array_equal, batch, expected)
    assert threads() == before

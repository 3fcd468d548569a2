"""One process of several that add a number up for ever, for tests of what ends them.

python peer_worker.py COORDINATOR NUM_PROCESSES PROCESS_ID HEARTBEAT_TIMEOUT [fail]

With 'fail', process 1 ends with an error of its own after some sums.
"""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax import cli
from vit_jax.devices import distributed, peers
from vit_jax.errors import UserError


def work() -> None:
    address, count, number, timeout, *fail = sys.argv[1:]
    distributed.initialize(
        address, int(count), int(number), timeout=120, heartbeat_timeout=float(timeout)
    )
    with peers.told():
        step = 0
        while True:
            multihost_utils.process_allgather(np.ones(2))
            step += 1
            if step == 3:
                print("ready", flush=True)
            if fail and step == 10 and jax.process_index() == 1:
                raise UserError("image.png is damaged")


if __name__ == "__main__":
    sys.exit(cli.guarded(work))

"""What a batch costs on its way to the devices: bytes, and the time of a step with a fast model.

    python benchmarks/transfer.py [--batch 128] [--classes 21843] [--rounds 7] [--steps 10]

Before: normalised float32 images and label vectors, transferred by the loop's own thread. After:
pixels and class numbers, transferred by another thread, and made into the same numbers in the step.
The host's batches are ready, so that reading and decoding are not measured. The rows take turns,
round by round, and a ratio is the median over rounds of the time to that of the first row.
"""

import argparse
import collections
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vit_jax.configs import common, models
from vit_jax.devices.sharding import make_mesh, to_devices
from vit_jax.input_pipeline import transforms as tr
from vit_jax.train import engine as engine_lib

SIZE = 224
Batch = dict[str, np.ndarray]
Transfer = Callable[[Iterator[Batch], Any, int], Iterator[Any]]


def in_the_loop(batches: Iterator[Batch], sharding: Any, ahead: int) -> Iterator[Any]:
    """Transfers `ahead` batches before they are needed, without a thread."""
    ready: collections.deque[Any] = collections.deque()
    for batch in batches:
        ready.append(jax.device_put(batch, sharding))
        if len(ready) > ahead:
            yield ready.popleft()


def batches(count: int, classes: int, compact: bool) -> list[Batch]:
    rng, made = np.random.default_rng(0), []
    for _ in range(4):
        image = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
        label = rng.integers(0, classes, count).astype(np.int32)
        if not compact:
            image = tr.ValueRange()({"image": image})["image"]
            label = np.eye(classes, dtype=np.float32)[label]
        made.append({"image": image, "label": label})
    return made


def engine(count: int, classes: int) -> engine_lib.Engine:
    config = common.get_config()
    config.model = models.get_testing_config()
    config.model.patches.size = (32, 32)
    config.pp.crop, config.batch, config.accum_steps = SIZE, count, 1
    config.batch_eval, config.total_steps, config.warmup_steps = count, 1000, 0
    config = common.with_defaults(config)
    return engine_lib.build(config, make_mesh(config.mesh), classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=21_843)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="in a round")
    args = parser.parse_args()
    built, key = engine(args.batch, args.classes), jax.random.key(1)
    rows: dict[str, tuple[bool, Transfer]] = {
        "float32 and vectors, in the loop": (False, in_the_loop),
        "float32 and vectors, in a thread": (False, to_devices),
        "pixels and numbers, in the loop": (True, in_the_loop),
        "pixels and numbers, in a thread": (True, to_devices),
    }
    hosts = {compact: batches(args.batch, args.classes, compact) for compact in (False, True)}

    def seconds(compact: bool, transfer: Transfer, steps: int) -> float:
        state, scalars = built.init(jax.random.key(0)), {}
        stream = transfer(itertools.cycle(hosts[compact]), built.batch, 2)
        first = next(stream)
        jax.block_until_ready((state, first))
        start = time.perf_counter()
        for batch in itertools.chain([first], itertools.islice(stream, steps - 1)):
            state, scalars = built.train_step(state, batch, key)
        jax.block_until_ready(scalars)
        return (time.perf_counter() - start) / steps

    for how in rows.values():
        seconds(*how, 2)  # Compiles.
    times = [
        {name: seconds(*how, args.steps) for name, how in rows.items()} for _ in range(args.rounds)
    ]
    for name, (compact, _) in rows.items():
        size = sum(x.nbytes for x in hosts[compact][0].values())
        ratio = statistics.median(t[name] / next(iter(t.values())) for t in times)
        typical = statistics.median(t[name] for t in times)
        print(f"{name:34} {size / 1e6:7.1f} MB  {typical * 1e3:7.1f} ms a step  {ratio:5.2f}")


if __name__ == "__main__":
    main()

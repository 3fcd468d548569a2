"""How much of the bare forward pass `vit-jax predict` keeps: `python benchmarks/predict.py`.

The peer is the same compiled program on one batch that lies ready in memory, called again and again
in the same process, in turns with the prediction of PNG files of 32 × 32 pixels. Bars: at least 0.9
of its speed, and the last three quarters of 20,000 images take no more memory than the first, but
for what the allocator of C holds back.
"""

import argparse
import itertools
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from vit_jax import checkpoint, inference
from vit_jax.evaluate import predictions
from vit_jax.families.registry import resolve
from vit_jax.input_pipeline.inputs import ImageFiles
from vit_jax.models import from_config

LEAST_SHARE, MOST_GROWTH = 0.9, 30 * 2**20


def images(folder: pathlib.Path, count: int = 1000) -> list[str]:
    """Files of noise; a stream of more images names them again."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return list(map(str, paths))


def model(folder: pathlib.Path, name: str) -> inference.LoadedModel:
    """Random weights for images of 32 × 32 pixels in patches of 4 × 4."""
    config = resolve(name).config.to_dict() | {"patches": {"size": (4, 4)}}
    module = from_config(config, num_classes=10)
    variables = module.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False)
    checkpoint.save_timm(folder / "x.safetensors", variables["params"], config)
    return inference.load_model(folder / "x.safetensors")


def stream(loaded: inference.LoadedModel, paths: list[str], count: int, batch: int) -> float:
    """Images a second of the whole command but for the writing of lines."""
    source = ImageFiles(list(itertools.islice(itertools.cycle(paths), count)), "noise")
    start = time.perf_counter()
    items = predictions.of_source(source)
    done = sum(1 for _ in predictions.predict(loaded, items, batch=batch))
    assert done == count
    return count / (time.perf_counter() - start)


def bare(loaded: inference.LoadedModel, count: int, batch: int) -> float:
    """Images a second of the forward pass alone, each result waited for after the next is asked."""
    x = np.random.default_rng(0).uniform(-1, 1, (batch, 32, 32, 3)).astype(np.float32)
    waiting = loaded.dispatch(x)
    start = time.perf_counter()
    for _ in range(count // batch):
        waiting, before = loaded.dispatch(x), waiting
        np.asarray(before)
    np.asarray(waiting)
    return count // batch * batch / (time.perf_counter() - start)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-Ti_16")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        paths, loaded = images(folder), model(folder, args.model)
        stream(loaded, paths, 2 * args.batch, args.batch)  # compiles
        shares, share, before = [], args.images // args.rounds, 0
        for i in range(args.rounds):
            peer = bare(loaded, share, args.batch)
            ours = stream(loaded, paths, share, args.batch)
            shares.append(ours / peer)
            before = peak() if i < args.rounds // 4 else before
            print(
                f"round {i + 1}: {ours:.0f} images/s, {shares[-1]:.3f} of the bare {peer:.0f}; "
                f"peak memory {peak() / 2**20:.0f} MiB",
                flush=True,
            )
    median, growth = statistics.median(shares), peak() - before
    print(f"median {median:.3f} (bar {LEAST_SHARE})")
    print(f"after the first quarter memory grew by {growth / 2**20:.1f} MiB")
    return int(median < LEAST_SHARE or growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())

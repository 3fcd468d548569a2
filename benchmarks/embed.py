"""How much of the bare forward pass `vit-jax embed` keeps: `python benchmarks/embed.py`.

The peer is the same compiled program on one batch that lies ready in memory, called again and again
in the same process, in turns with the embedding of image files to shards of Parquet, decoding and
writing included. It runs on all local devices. Bar: at least 0.9 of the peer's speed.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from vit_jax import checkpoint, loaded
from vit_jax.evaluate.embeddings import writing
from vit_jax.evaluate.embeddings.embedder import Embedder
from vit_jax.evaluate.embeddings.folder import Folder, Manifest
from vit_jax.families.registry import resolve
from vit_jax.input_pipeline.inputs import ImageFiles
from vit_jax.models import from_config

LEAST_SHARE = 0.9


def images(folder: pathlib.Path, count: int, side: int) -> list[str]:
    """JPEG files of coarse noise, somewhat larger than what the model gets."""
    rng, paths = np.random.default_rng(0), [folder / f"{i}.jpg" for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8))
        coarse.resize((side * 5 // 4, side), Image.Resampling.BICUBIC).save(path, quality=90)
    return list(map(str, paths))


def model(folder: pathlib.Path, name: str, side: int, patch: int) -> loaded.Loaded:
    """Random weights for images of a size."""
    config = resolve(name).config.to_dict() | {"patches": {"size": (patch, patch)}}
    module = from_config(config, num_classes=10)
    image = np.zeros((1, side, side, 3), np.float32)
    variables = jax.jit(lambda key: module.init(key, image, train=False))(jax.random.key(0))
    checkpoint.save_timm(folder / "x.safetensors", variables["params"], config)
    return loaded.load(folder / "x.safetensors")


def stream(embedder: Embedder, paths: list[str], folder: pathlib.Path, args) -> float:
    """Images a second of the command, from files to finished shards."""
    source, place = ImageFiles(paths, "noise"), Folder(folder)
    told = writing.describe(source)
    manifest = Manifest({}, told, embedder.shapes, "float32", "parquet", args.shard_size)
    place.begin(manifest)
    mine = range(manifest.shards)
    start = time.perf_counter()
    batch = args.batch * embedder.devices
    found = writing.embed(embedder, source, place, manifest, mine, batch=batch, on_error="raise")
    assert sum(1 for _ in found) == len(paths)
    assert len(place.finished()) == manifest.shards
    return len(paths) / (time.perf_counter() - start)


def bare(embedder: Embedder, count: int, args) -> float:
    """Images a second of the forward pass, each result waited for after the next is asked."""
    size = args.batch * embedder.devices
    x = np.random.default_rng(0).uniform(-1, 1, (size, args.side, args.side, 3)).astype(np.float32)
    waiting = embedder.dispatch(x)
    start = time.perf_counter()
    for _ in range(count // size):
        waiting, before = embedder.dispatch(x), waiting
        jax.device_get(before)
    jax.device_get(waiting)
    return count // size * size / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-Ti_16")
    parser.add_argument("--side", type=int, default=96, help="pixels of the model's images")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--images", type=int, default=384, help="in a round")
    parser.add_argument("--batch", type=int, default=32, help="on each device")
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--what", default="features")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = images(folder, args.files, args.side)
        paths = [files[i % len(files)] for i in range(args.images)]
        loaded_model = model(folder, args.model, args.side, args.patch)
        embedder = Embedder(loaded_model, tuple(args.what.split(",")))
        stream(embedder, paths[: args.batch * embedder.devices], folder / "warm", args)  # compiles
        shares = []
        for i in range(args.rounds):
            peer = bare(embedder, args.images, args)
            ours = stream(embedder, paths, folder / str(i), args)
            shares.append(ours / peer)
            print(f"round {i + 1}: {ours:.0f} images/s, {ours / peer:.3f} of the bare {peer:.0f}")
    median = statistics.median(shares)
    print(f"{args.model}, {jax.devices()[0].device_kind}: median {median:.3f} (bar {LEAST_SHARE})")
    return int(median < LEAST_SHARE)


if __name__ == "__main__":
    sys.exit(main())

"""Round trips A -> B -> A of full-size models through every pair of formats, bit for bit.

One line a pair: seconds for there and back, and whether every tensor came back with its name,
shape, dtype and bits. The exit status is 1 if one did not.

    python benchmarks/round_trips.py [--folder FOLDER] [MODEL …]     # FOLDER needs 11 GB
"""

import argparse
import itertools
import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np

from vit_jax import checkpoint
from vit_jax.checkpoint import names
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.checkpoint.names import expected_shapes
from vit_jax.families.registry import resolve
from vit_jax.tree import unflatten

MODELS = ("ViT-B_16", "ViT-L_16", "R50+ViT-B_16")
NAMES = {
    "official": "official.npz",
    "big_vision": "big_vision.npz",
    "orbax": "orbax",
    "timm": "timm.safetensors",
    "hf": "hf",
}


def formats(model: str) -> list[str]:
    """The formats that can hold it: big_vision and Hugging Face have no hybrids."""
    held = names.holding(resolve(model).config.to_dict())
    return [f for f in NAMES if f == "orbax" or f in held]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--folder", help="where the files go for a while")
    args = parser.parse_args()
    failed = 0
    for model in args.models:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            failed += round_trips(model, pathlib.Path(name))
    return int(failed > 0)


def round_trips(model: str, folder: pathlib.Path) -> int:
    """Prints a line a pair; the number of pairs that lost something."""
    src, failed = folder / "src.npz", 0
    config = resolve(model).config.to_dict()
    shapes = expected_shapes(config, num_classes=1000, image_size=(224, 224))
    checkpoint.save(src, unflatten(random(shapes)))
    print(f"{model}: {src.stat().st_size / 1e9:.2f} GB", flush=True)
    for first, second in itertools.permutations(formats(model), 2):
        a, b, again = folder / NAMES[first], folder / f"b_{NAMES[second]}", folder / NAMES[first]
        again = again.with_name(f"again_{again.name}")
        if not a.exists():
            checkpoint.convert(src, a, to=first)
        start = time.perf_counter()
        checkpoint.convert(a, b, to=second)
        checkpoint.convert(b, again, to=first)
        seconds = time.perf_counter() - start
        count, differing = compared(a, again)
        failed += bool(differing)
        verdict = f"{len(differing)} differ: {differing[:3]}" if differing else "identical"
        print(f"  {first} → {second} → {first}: {seconds:.1f} s, {count} tensors, {verdict}")
        sys.stdout.flush()
        for path in (b, again):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return failed


def random(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def compared(a: pathlib.Path, b: pathlib.Path) -> tuple[int, list[str]]:
    """How many tensors there are, and the names of those that differ in anything."""
    with open_archive(weights(a)) as x, open_archive(weights(b)) as y:
        differing = [name for name in x.specs.keys() | y.specs.keys() if not same(name, x, y)]
        return len(x), sorted(differing)


def weights(path: pathlib.Path) -> pathlib.Path:
    """In Hugging Face's directory, the file."""
    file = path / "model.safetensors"
    return file if file.exists() else path


def same(name: str, x, y) -> bool:
    if x.specs.get(name) != y.specs.get(name):
        return False
    left, right = (np.ascontiguousarray(z[name]).reshape(-1).view(np.uint8) for z in (x, y))
    return np.array_equal(left, right)


if __name__ == "__main__":
    sys.exit(main())

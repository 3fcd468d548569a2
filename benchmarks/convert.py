"""Converts a ViT-L/16 `.npz` (1.2 GB) to timm safetensors, ours against timm's own way.

timm's way: create the model, load the `.npz`, save its state dict. Our other directions, to Hugging
Face and back to `.npz`, are measured beside it, and a raw copy of the file gives the disk's part.
Each runs in a process of its own, whose wall time, processor time and peak memory are taken whole,
imports included. They take turns, so that other work on the machine meets all of them; a ratio is
the median over rounds.

    python benchmarks/convert.py [FOLDER] [--rounds 5]      # FOLDER needs 4 GB
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

MAKE = """
import sys
import numpy as np
from vit_jax import checkpoint
from vit_jax.checkpoint.names import expected_shapes
from vit_jax.tree import unflatten
from vit_jax.families.registry import resolve
shapes = expected_shapes(resolve("ViT-L_16").config, num_classes=1000, image_size=(224, 224))
rng = np.random.default_rng(0)
params = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
checkpoint.save(sys.argv[1], unflatten(params))
"""
COPY = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"
OURS = (
    "from vit_jax import checkpoint; import sys;"
    "checkpoint.convert(sys.argv[1], sys.argv[2], to='{to}')"
)
TIMMS = (
    "import sys, timm; from safetensors.torch import save_file;"
    "m = timm.create_model('vit_large_patch16_224', num_classes=1000);"
    "m.load_pretrained(sys.argv[1]); save_file(m.state_dict(), sys.argv[2])"
)
NPZ, SAFETENSORS = "L_16.npz", "L_16.safetensors"
PEER = "timm: npz -> safetensors"
ROWS = {  # what -> (code, source)
    "a raw copy": (COPY, NPZ),
    "vit-jax: npz -> timm": (OURS.format(to="timm"), NPZ),
    "vit-jax: npz -> hf": (OURS.format(to="hf"), NPZ),
    "vit-jax: timm -> npz": (OURS.format(to="official"), SAFETENSORS),
    PEER: (TIMMS, NPZ),
}


class Cost(NamedTuple):
    """Seconds by the clock and of all processors, and the peak of memory in MB, of a process."""

    wall: float
    cpu: float
    peak: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    costs: dict[str, list[Cost]] = {what: [] for what in ROWS}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = pathlib.Path(name)
        # In processes of their own: a child's peak counts its parent's memory when it was started.
        run(MAKE, folder / NPZ)
        run(OURS.format(to="timm"), folder / NPZ, folder / SAFETENSORS)
        print(f"{(folder / NPZ).stat().st_size / 1e9:.2f} GB, {args.rounds} rounds", flush=True)
        for _ in range(args.rounds):
            for what, (code, source) in ROWS.items():
                out = folder / "out"
                costs[what].append(run(code, folder / source, out))
                shutil.rmtree(out) if out.is_dir() else out.unlink()
    print("row | wall s | CPU s | peak MB | of timm's wall (range) | of timm's CPU")
    for what, found in costs.items():
        wall, cpu, peak = (statistics.median(column) for column in zip(*found, strict=True))
        pairs = list(zip(found, costs[PEER], strict=True))
        walls = [ours.wall / theirs.wall for ours, theirs in pairs]
        of_cpu = statistics.median(ours.cpu / theirs.cpu for ours, theirs in pairs)
        print(
            f"{what} | {wall:.2f} | {cpu:.2f} | {peak:.0f} | {statistics.median(walls):.2f} "
            f"({min(walls):.2f}–{max(walls):.2f}) | {of_cpu:.2f}"
        )


def run(code: str, *paths: pathlib.Path) -> Cost:
    """The cost of a Python process. It may keep compiled modules, as an installed package's are."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, paths)], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"failed: {code}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)


if __name__ == "__main__":
    main()

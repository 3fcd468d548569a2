"""Converts a ViT-L/16 `.npz` (1.2 GB) to timm safetensors, ours against timm's own way.

timm's way: create the model, load the `.npz`, save its state dict. Each runs in a process of its
own, whose wall time and peak memory are taken whole, imports included. A raw copy of the file
gives the disk's part.

    python benchmarks/convert.py [FOLDER]      # FOLDER needs 4 GB
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

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
OURS = (
    "from vit_jax import checkpoint; import sys;"
    "checkpoint.convert(sys.argv[1], sys.argv[2], to='timm')"
)
TIMMS = (
    "import sys, timm; from safetensors.torch import save_file;"
    "m = timm.create_model('vit_large_patch16_224', num_classes=1000);"
    "m.load_pretrained(sys.argv[1]); save_file(m.state_dict(), sys.argv[2])"
)


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = pathlib.Path(name)
        src = folder / "L_16.npz"
        # In a process of its own: a child's peak counts its parent's memory when it was started.
        subprocess.run([sys.executable, "-c", MAKE, str(src)], check=True)
        start = time.perf_counter()
        shutil.copyfile(src, folder / "copy")
        copy = time.perf_counter() - start
        print(f"{src.stat().st_size / 1e9:.2f} GB; a raw copy takes {copy:.2f} s")
        ours = measured("vit-jax convert", OURS, src, folder / "ours", copy)
        timms = measured("timm", TIMMS, src, folder / "timms", copy)
        time_, peak = (a / b for a, b in zip(ours, timms, strict=True))
        print(f"ours / timm: {time_:.2f} of the time, {peak:.2f} of the peak memory")


def measured(what: str, code: str, src, dst, copy: float) -> tuple[float, float]:
    """(seconds, peak bytes) of a process; prints them."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, str(src), str(dst)])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{what} failed")
    peak = usage.ru_maxrss * 1024
    print(f"{what}: {seconds:.2f} s ({seconds / copy:.1f} × the copy), peak {peak / 1e6:.0f} MB")
    return seconds, peak


if __name__ == "__main__":
    main()

"""What compiling costs: `python benchmarks/compile_times.py` (the TPU rows need libtpu).

The first training step of S/16 on this machine, without and with what the last run left in the
compilation cache; and the train step of L/16 and g/14 for 256 TPU chips, blocks one by one and in
a scan.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from tpu_plan import command_of, config_file

PROGRAM = [sys.executable, "-m", "vit_jax.cli"]


def report(arguments: list[str], **settings: str) -> dict:
    """What a command prints with --json; {} and its complaint on the screen where it fails."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings},
    )
    if not done.stdout:
        print(done.stderr.strip(), flush=True)
    return json.loads(done.stdout or "{}")


def first_step() -> None:
    arguments = ["bench", "ViT-S_16", "--mode", "train", "--batch", "8", "--against", "none"]
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty cache", "second run"):
            found = report([*arguments, "--rounds", "1", "--json"], JAX_COMPILATION_CACHE_DIR=cache)
            (timing,) = found["results"][0]["timings"]
            print(
                f"ViT-S_16 on this machine, {name}: first step {timing['first_seconds']:.1f} s, "
                f"a later one {timing['median_seconds']:.1f} s",
                flush=True,
            )


def scanned() -> None:
    with config_file() as config:
        for name in ("l16-v5e", "g14-v5e"):
            for scan in (False, True):
                started = time.perf_counter()
                arguments = command_of(name, config, **{"model.transformer.scan": scan})
                if plan := report(arguments):
                    print(
                        f"{name}, {'scan' if scan else 'blocks one by one'}: compiled in "
                        f"{plan['compile_seconds']:.0f} s, the whole command "
                        f"{time.perf_counter() - started:.0f} s",
                        flush=True,
                    )


if __name__ == "__main__":
    first_step()
    scanned()

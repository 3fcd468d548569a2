"""The demo's accuracy and time for three seeds: `python benchmarks/digits.py [SEED …]`.

Bars: at least 97 % for each seed, in under 4 minutes of training on two CPU cores.
"""

import re
import subprocess
import sys
import tempfile
import time


def main(seeds: list[int]) -> int:
    failed = False
    for seed in seeds:
        with tempfile.TemporaryDirectory() as workdir:
            command = ["vit_jax.cli", "demo", f"--workdir={workdir}/digits", f"--seed={seed}"]
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", *command], check=True, capture_output=True, text=True
            )
            seconds = time.perf_counter() - start
        last = done.stdout.splitlines()[-1]
        accuracy = float(re.search(r"([\d.]+) %", last)[1])
        failed |= accuracy < 97 or seconds > 240
        print(
            f"seed {seed}: {accuracy:.1f} %, {seconds:.0f} s with start-up and export", flush=True
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2]))

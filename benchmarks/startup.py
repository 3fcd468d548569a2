"""Times what a user waits for before anything happens: `python benchmarks/startup.py`.

Bars: `import vit_jax` < 0.1 s and `vit-jax --help` < 0.5 s, beyond the bare interpreter.
"""

import pathlib
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass (the peer)": [sys.executable, "-c", "pass"],
    "import vit_jax": [sys.executable, "-c", "import vit_jax"],
    "vit-jax --help": [str(pathlib.Path(sys.executable).with_name("vit-jax")), "--help"],
    "vit-jax models": [str(pathlib.Path(sys.executable).with_name("vit-jax")), "models"],
}
BARS = {"import vit_jax": 0.1, "vit-jax --help": 0.5}


def seconds(command: list[str], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> int:
    bare = 0.0
    failed = False
    for name, command in COMMANDS.items():
        median = seconds(command)
        bare = bare or median
        bar = BARS.get(name)
        failed |= bar is not None and median - bare > bar
        note = "" if bar is None else f"   bar: {bar} s beyond the interpreter"
        print(f"{name:28} {median:6.3f} s   {median / bare:4.1f} x{note}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""A program on CPU keeps its memory from step to step; a process that only uses the library not."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import concurrent.futures
import resource
import numpy as np
from vit_jax.devices import allocator

def faults():
    np.ones(40_000_000, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(40_000_000, np.uint8)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 4

assert not allocator.keep_memory()
given_back = faults()
allocator.own_process()
assert allocator.keep_memory() == (not EXPECTED_TUNED)
with concurrent.futures.ThreadPoolExecutor(1) as thread:  # XLA's threads are later ones too
    print(given_back, thread.submit(faults).result())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("tuned", [False, True], ids=["ours to set", "tuned by the user"])
def test_blocks_that_were_given_back_are_not_mapped_again(tuned):
    # 40 MB are above what glibc would come to keep by itself, 32 MiB. What the user says in the
    # environment stays: here that every block of 1 MB is mapped on its own, which is the default
    # for 40 MB.
    environment = {"JAX_PLATFORMS": "cpu", "NUMPY_MADVISE_HUGEPAGE": "0"}
    if tuned:
        environment["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    program = PROGRAM.replace("EXPECTED_TUNED", str(tuned))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.split())
    assert before > 0
    assert after < 0.1 * before if not tuned else after > 0.5 * before

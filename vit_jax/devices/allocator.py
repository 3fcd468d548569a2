"""Has glibc keep the memory that a program on CPU gives back, for the next step needs it again.

XLA allocates what a step needs anew in every step. glibc maps each large block from the system and
unmaps it afterwards, so Linux clears and maps it page by page again: a quarter of a million page
faults in every step of ViT-S/16 at batch 8.
"""

import ctypes
import glob
import os
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_SETTINGS = {
    # No block is mapped on its own, and the heap never shrinks.
    _MMAP_MAX: 0,
    _TRIM_THRESHOLD: -1,
    # One heap for all threads: a thread's own is of pieces of 64 MiB that are given back.
    _ARENA_MAX: 1,
}


# NVIDIA's and AMD's GPUs and TPUs, as Linux names them.
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")

_process = {"ours": False}


def own_process() -> None:
    """Says that this process is a command's own, whose allocator `keep_memory` may set."""
    _process["ours"] = True


def keep_memory() -> bool:
    """Tells glibc to keep what it was given; the process then never shrinks below its peak.

    Called before JAX looks for its devices: the threads that it starts then would have heaps of
    their own, which give memory back whatever they are told.

    Returns:
      Whether it did: not in a process that only uses this library, where the C library is another
      one, where JAX computes on a GPU or TPU, or where the environment tunes malloc already.
    """
    if not _process["ours"] or platform.libc_ver()[0] != "glibc" or _tuned() or not _on_cpu():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items())


def _tuned() -> bool:
    return any(
        name.startswith("MALLOC_") or (name == "GLIBC_TUNABLES" and "glibc.malloc" in value)
        for name, value in os.environ.items()
    )


def _on_cpu() -> bool:
    """Whether JAX will compute on CPU. It is not asked, as it would start its threads."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen == "cpu"
    return not any(glob.glob(pattern) for pattern in _ACCELERATORS)

"""Has glibc keep the memory that a program on CPU gives back, for the next step needs it again.

XLA allocates what a step needs anew in every step. glibc maps each large block from the system and
unmaps it afterwards, so Linux clears and maps it page by page again: a quarter of a million page
faults in every step of ViT-S/16 at batch 8.
"""

import ctypes
import os
import platform

# Parameters of mallopt(3), from glibc's malloc.h, and the environment's names for them.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_SETTINGS = {
    # Nothing is mapped on its own; the heap grows by 64 MiB at a time and never shrinks.
    _MMAP_MAX: 0,
    _TRIM_THRESHOLD: 2**31 - 1,
    _TOP_PAD: 64 << 20,
    # One heap for all threads: that of another thread cannot grow beyond 64 MiB.
    _ARENA_MAX: 1,
}


_process = {"ours": False}


def own_process() -> None:
    """Says that this process is a command's own, whose allocator `keep_memory` may set."""
    _process["ours"] = True


def keep_memory() -> bool:
    """Tells glibc to keep what it was given; the process then never shrinks below its peak.

    Called after JAX has joined the other processes of a run, and before the first step.

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
    import jax

    return jax.default_backend() == "cpu"

"""Processes that tests start: with their own number of devices, and one cache of compiled code."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import zygote

TESTS = pathlib.Path(__file__).parent
# Shared by all processes of a test run, and by nothing else: what compiled it may have changed.
_CACHE = tempfile.TemporaryDirectory(prefix="vit_jax_cache_")
LIMIT = 300  # seconds that a process may take on a machine that does much else


def environment(devices: int) -> dict[str, str]:
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(TESTS),
    }


def start(words: Sequence[object], devices: int = 1, **variables: str) -> subprocess.Popen:
    """`python <words>` in a process group of its own, with more variables of the environment."""
    words, env = [str(word) for word in words], environment(devices) | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # The import of a package may read the variables; and only Linux lets a process adopt another.
    if variables or sys.platform != "linux":
        words = [sys.executable, *words]
        return subprocess.Popen(words, env=env, start_new_session=True, **pipes)
    return zygote.Forked(words, env=env, **pipes)


def finish(*processes: subprocess.Popen, limit: float = LIMIT) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of each, when all are done; none of them outlives a failure."""
    try:
        texts = [p.communicate(timeout=limit) for p in processes]
    finally:
        for p in processes:
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGKILL)
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def succeed(*processes: subprocess.Popen) -> None:
    for status, _, errors in finish(*processes):
        assert status == 0, errors[-3000:]


def read_terminal(master: int) -> bytes:
    """What comes from a pseudo-terminal until its other end is closed; closes this one."""
    seen = b""
    with contextlib.suppress(OSError):  # how the end shows
        while part := os.read(master, 4096):
            seen += part
    os.close(master)
    return seen


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def together(count: int) -> Iterator[list[str]]:
    """Coordinator, number of processes and own number, for each of `count`."""
    address = f"127.0.0.1:{free_port()}"
    return ([address, str(count), str(i)] for i in range(count))

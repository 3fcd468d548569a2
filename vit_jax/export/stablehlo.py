"""StableHLO by `jax.export`: one file for CPUs, NVIDIA's GPUs and TPUs."""

import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any

from vit_jax.export.program import Program

SUFFIX = ".stablehlo"
PACKAGES = ("flatbuffers",)
PLATFORMS = ("cpu", "cuda", "tpu")


def written(program: Program) -> bytes:
    """The content of a file; its weights are part of it.

    Raises:
      UserError: as `Program.specs`.
    """
    import jax
    from jax import export

    exported = export.export(jax.jit(program.closed), platforms=PLATFORMS)(*program.specs())
    return bytes(exported.serialize())


def reader(path: str | pathlib.Path, program: Program) -> Callable[..., Any]:
    """What a file computes: a function of arrays, to a sequence of arrays."""
    from jax import export

    return export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call


def facts(path: str | pathlib.Path) -> dict[str, Any]:
    """What else is recorded of such a file."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", *PACKAGES)}
    return {"platforms": list(PLATFORMS), "versions": versions}

"""ONNX by jax2onnx, read by ONNX Runtime."""

import contextlib
import importlib.metadata
import io
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.errors import UserError
from vit_jax.export.program import Program

SUFFIX = ".onnx"
PACKAGES = ("jax2onnx", "onnx", "onnxruntime")


def written(program: Program) -> bytes:
    """The content of a file; its weights are part of it.

    Raises:
      UserError: as `Program.specs`; and for a model that jax2onnx cannot convert.
    """
    import jax2onnx

    specs = program.specs()
    try:
        with _converting():
            model: Any = jax2onnx.to_onnx(
                program.closed,
                specs,
                model_name=program.name,
                input_names=[x.name for x in program.inputs],
                output_names=list(program.outputs),
            )
    except Exception as error:  # whatever it raises, it is the converter's limit
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"jax2onnx {importlib.metadata.version('jax2onnx')} cannot convert {program.name} "
            f"({type(error).__name__}: {first}). --to stablehlo can; --batch N, for a number of "
            "examples, may help"
        ) from error
    return model.SerializeToString()


@contextlib.contextmanager
def _converting() -> Iterator[None]:
    """Without what the converter prints and warns of, and with JAX as it expects it."""
    import jax

    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        printed = contextlib.redirect_stdout(io.StringIO())
        with printed, jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def reader(path: str | pathlib.Path, program: Program) -> Callable[..., Any]:
    """What a file computes: a function of arrays, to a sequence of arrays."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [x.name for x in program.inputs]
    return lambda *arrays: session.run(list(program.outputs), dict(zip(names, arrays, strict=True)))


def facts(path: str | pathlib.Path) -> dict[str, Any]:
    """What else is recorded of such a file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    versions = {name: importlib.metadata.version(name) for name in ("jax", *PACKAGES)}
    return {
        "opset": max(x.version for x in model.opset_import if not x.domain),
        "versions": versions,
    }

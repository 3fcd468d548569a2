"""A model as one file that runs without vit_jax: StableHLO or ONNX.

exported = export(vit_jax.load("vit.npz"), "vit.onnx", to="onnx")
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax import __version__, stores
from vit_jax.errors import UserError, chosen
from vit_jax.export import onnx_file, stablehlo
from vit_jax.export.program import Program, program_of, scores_of
from vit_jax.tree import arrays

if TYPE_CHECKING:
    from vit_jax.loaded import Loaded

FORMATS = {"stablehlo": stablehlo, "onnx": onnx_file}
BAR = 1e-5  # what a file may differ from the model by, of the largest number that it gives
_COUNTS = (1, 5)  # examples for which they are compared
_TINY = 1e-30  # where every number is zero
_MOST = 2**31 - 1  # bytes of a file of protocol or flat buffers


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
      path: Where it lies.
      description: What lies beside it as JSON.
    """

    path: str
    description: dict[str, Any]

    @property
    def errors(self) -> dict[str, float]:
        """By the number of examples: see `compared`."""
        return self.description["compared"]


def check(dst: str | os.PathLike, to: str) -> Any:
    """The module of a format, which can write to this place.

    Raises:
      UserError: for an unknown format, packages that are missing, a name that ends otherwise, and
        a file that is there.
    """
    form = chosen(to, FORMATS, "format")
    if missing := [name for name in form.PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--to {to} needs {' and '.join(missing)}, which is not installed: "
            'pip install "vit-jax[export]"'
        )
    dst = os.fspath(dst)
    if not dst.endswith(form.SUFFIX):
        raise UserError(f"--to {to} writes {form.SUFFIX} files; got {dst!r}")
    for place in (dst, beside(dst)):
        if stores.exists(place):
            raise UserError(f"{place!r} is there already: name another file, or remove it")
    return form


def beside(dst: str) -> str:
    """Where the description of a file lies."""
    return f"{dst}.json"


def export(
    loaded: "Loaded",
    dst: str | os.PathLike,
    *,
    to: str,
    what: Sequence[str] | None = None,
    raw: bool = False,
    batch: int | None = None,
    source: str = "",
) -> Exported:
    """Writes a model to a file, runs the file, and compares it with the model.

    The file and its description `DST.json` appear whole, and only if it computes what the model
    does.

    Args:
      loaded: The model.
      dst: Where to, a name that ends as the format wants it.
      to: A key of `FORMATS`.
      what, raw, batch: As for `program.program_of`.
      source: Where the weights came from, for the description.

    Raises:
      UserError: as `check` and `program_of`; for a model that the format cannot hold; and for a
        file that computes something else.
    """
    from vit_jax.checkpoint.files.archive import replacing

    form, dst = check(dst, to), os.fspath(dst)
    program = program_of(loaded, what, raw=raw, batch=batch)
    _require_room(program, to)
    with replacing(dst) as file, replacing(beside(dst)) as description:
        content = form.written(program)
        file.write(content)
        file.flush()
        told = {
            "format": to,
            "source": source,
            "model": loaded.weights.model.metadata(),
            "class_names": loaded.class_names,
            **program.described(),
            **scores_of(loaded),
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "vit_jax": __version__,
            **form.facts(file.name),
            "compared": compared(program, form.reader(file.name, program)),
        }
        description.write(json.dumps(told, indent=2, ensure_ascii=False).encode() + b"\n")
    return Exported(dst, told)


def compared(program: Program, run: Any) -> dict[str, float]:
    """The largest difference of what a file gives from what the model does, by the examples given.

    Relative to the largest number of each output, and the worst of the outputs.

    Args:
      program: The model.
      run: What the file computes.

    Raises:
      UserError: for a difference above `BAR`.
    """
    import jax

    counts = _COUNTS if program.batch is None else (program.batch,)
    # Where the runtime of ONNX computes too, and in full precision.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        wanted = jax.jit(program.function)
        errors = {
            str(n): _difference(run(*x), wanted(program.variables, *x))
            for n in counts
            for x in [program.examples(n)]
        }
    if not np.max(list(errors.values())) <= BAR:  # which NaN is not
        found = ", ".join(f"{error:.1e} for {n}" for n, error in errors.items())
        raise UserError(
            f"the file that was made of {program.name} computes something else than the model: it "
            f"differs by {found} examples, and {BAR:.0e} is allowed. It is not kept"
        )
    return errors


def _difference(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    return float(np.max([_of_largest(x, y) for x, y in zip(found, wanted, strict=True)]))


def _of_largest(found: Any, wanted: Any) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        return math.inf
    return np.abs(found - wanted).max() / max(np.abs(wanted).max(), _TINY)


def _require_room(program: Program, to: str) -> None:
    size = sum(x.nbytes for x in arrays(program.variables).values())
    if size > _MOST:
        raise UserError(
            f"{program.name} has {size / 2**30:.1f} GiB of weights, and a file of {to} holds less "
            "than 2"
        )

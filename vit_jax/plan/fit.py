"""Searches the settings that trade time for memory, by compiling with them.

The more a step computes twice (`remat`), the less memory it needs. So the search first finds the
largest batch, or the smallest slice, with the value of `remat` that saves the most memory. For this
batch and slice it then takes the fastest value of `remat` that still fits. Cutting the batch into
more parts does not always save memory, because small parts are padded to tiles, and neither does a
larger fsdp axis, which shrinks the state and grows the temporaries. These divisions are therefore
tried one by one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from vit_jax.errors import UserError
from vit_jax.plan import compiling, topology
from vit_jax.plan.report import Plan
from vit_jax.plan.space import Settings
from vit_jax.plan.tries import Compiler, Say, Try, Undivided


@dataclasses.dataclass(frozen=True)
class Found:
    """The best settings that fit, their plan, and every compilation that was tried."""

    plan: Plan
    settings: Settings
    tries: tuple[Try, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, "tries": [tried.to_dict() for tried in self.tries]}


def search(config: Any, name: str | None, num_classes: int, goal: str, *, say: Say) -> Found:
    """Searches for the best settings that fit.

    Args:
      config: A complete config.
      name: Name of the topology; None is this machine.
      num_classes: Number of classes of the dataset.
      goal: 'batch' for the largest batch of `config.batch` times a power of 2, on this topology;
        'chips' for the smallest slice of its family on which `config.batch` fits.
      say: Function that is told what is tried, and the outcome.

    Raises:
      UserError: if nothing fits, or if the memory of a device is not known.
    """
    if goal == "chips" and name is None:
        raise UserError("--fit chips needs a --topology, whose family is searched")
    kind = (device := topology.devices(name)[0]).device_kind
    if compiling.limit(device) is None:
        raise UserError(f"--fit: how much memory a device of kind {kind!r} has is not known here")
    compiler = Compiler(config, num_classes, say)
    return (_largest_batch if goal == "batch" else _fewest_chips)(compiler, config, name)


def _largest_batch(compiler: Compiler, config: Any, name: str | None) -> Found:
    compiler.move(name)
    # Any batch would fit in enough parts, so the batch is cut only if it does not fit whole.
    parts = (1,)
    if (tried := compiler.compile(_most_sparing(compiler, config), parts)).fits:
        return _fastest(compiler, _grown(compiler, tried), parts)
    if (tried := compiler.compile(_most_sparing(compiler, config), compiler.parts)).fits:
        return _fastest(compiler, tried, compiler.parts)
    raise UserError(
        f"batch={config.batch} does not fit {name or 'this machine'}, sparing all that can be "
        "spared; start from a smaller one with --set batch=…, or look for more devices with "
        "--fit chips"
    )


def _grown(compiler: Compiler, fits: Try) -> Try:
    """The settings that fit with the batch doubled as often as it still fits."""
    batch, doubled, too_often = fits.settings["batch"], 0, None
    points = [(0, 0), _point(fits)]
    while too_often is None or too_often - doubled > 1:
        doublings = min(doubled + _doublings(points, fits), (too_often or math.inf) - 1)
        larger = {**fits.settings, "batch": batch * 2**doublings, "mesh.fsdp": 1}
        tried = compiler.compile(larger, (1,))
        if tried.fits:
            doubled, fits = doublings, tried
            points.append(_point(fits))
        else:
            too_often = doublings
    return fits


def _point(tried: Try) -> tuple[int, int]:
    """(images in the batch, bytes of memory) of a try that fits."""
    return (tried.settings["batch"], tried.plan.memory.total) if tried.plan else (0, 0)


def _doublings(points: list[tuple[int, int]], fits: Try) -> int:
    """Doublings that should fit, by the line through the last two points; at least 1."""
    (small, less), (large, more) = points[-2:]
    if more <= less or fits.plan is None or fits.plan.limit is None:
        return 1
    most = large + (fits.plan.limit - more) * (large - small) / (more - less)
    return max(1, int(math.log2(most / large)))


def _fewest_chips(compiler: Compiler, config: Any, name: str | None) -> Found:
    kind, places = topology.family(name or "")
    for place in places:
        try:
            compiler.move(place)
        except Undivided as problem:
            compiler.say(f"{place}: {problem}", True)
            continue
        tried = compiler.compile(_most_sparing(compiler, config), compiler.parts)
        if tried.fits:
            return _fastest(compiler, tried, compiler.parts)
    raise UserError(
        f"batch={config.batch} fits no slice of {kind} that is known here, sparing all that can be "
        "spared; a smaller batch may, or another family"
    )


def _fastest(compiler: Compiler, fits: Try, parts: Sequence[int]) -> Found:
    """Tries remat values from the fastest to the most sparing, and returns the first that fits.

    `fits` is a try that is known to fit, with full rematerialisation.
    """
    field, values = compiler.remat
    faster = (compiler.compile({**fits.settings, field: value}, parts) for value in values)
    fits = next(tried for tried in faster if tried.fits)
    assert fits.plan is not None
    return Found(fits.plan, fits.settings, tuple(compiler.tries))


def _most_sparing(compiler: Compiler, config: Any) -> Settings:
    field, values = compiler.remat
    return {"batch": config.batch, field: values[-1], "accum_steps": 1, "mesh.fsdp": 1}

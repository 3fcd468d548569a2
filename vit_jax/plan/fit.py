"""Searches the settings that trade time for memory, by compiling with them.

Memory falls along every axis of `space`. So the most sparing value of each says how large the
batch, or how small the slice, can be at all; there, axis after axis goes back to the fastest value
that still fits, first the one that costs most time. Not so along the sizes of the fsdp axis, which
makes the state smaller and the temporaries larger: they are tried one by one.
"""

import dataclasses
import math
from typing import Any

from vit_jax.errors import UserError
from vit_jax.plan import compiling, topology
from vit_jax.plan.report import Plan
from vit_jax.plan.space import Axes, Settings
from vit_jax.plan.tries import Compiler, Say, Try, Undivided


@dataclasses.dataclass(frozen=True)
class Found:
    """The best settings that fit, their plan, and all that was tried."""

    plan: Plan
    settings: Settings
    tries: tuple[Try, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, "tries": [tried.to_dict() for tried in self.tries]}


def search(config: Any, name: str | None, num_classes: int, goal: str, *, say: Say) -> Found:
    """The best settings that fit.

    Args:
      name: The topology; None is this machine.
      goal: 'batch' for the largest batch of `config.batch` times a power of 2, on this topology;
        'chips' for the smallest slice of its family on which `config.batch` fits.
      say: Gets what is tried, and what came of it.

    Raises:
      UserError: where nothing fits, or the memory of a device is not known.
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
    # Any batch fits in parts enough: they are for one that does not fit otherwise.
    axes = compiler.axes | {"accum_steps": (1,)}
    tried = compiler.compile(_most_sparing(config, axes))
    if tried.fits:
        tried = _grown(compiler, tried)
    else:
        axes = compiler.axes
        tried = compiler.compile(_most_sparing(config, axes))
        if not tried.fits:
            raise UserError(
                f"batch={config.batch} does not fit {name or 'this machine'}, sparing all that can "
                "be spared; start from a smaller one with --set batch=…, or look for more devices "
                "with --fit chips"
            )
    return _fastest(compiler, axes, tried)


def _grown(compiler: Compiler, fits: Try) -> Try:
    """Of what fits, the same with the batch doubled as often as that fits too."""
    batch, doubled, too_often = fits.settings["batch"], 0, None
    points = [(0, 0), _point(fits)]
    while too_often is None or too_often - doubled > 1:
        doublings = min(doubled + _doublings(points, fits), (too_often or math.inf) - 1)
        larger = {**fits.settings, "batch": batch * 2**doublings, "mesh.fsdp": 1}
        tried = compiler.compile(larger)
        if tried.fits:
            doubled, fits = doublings, tried
            points.append(_point(fits))
        else:
            too_often = doublings
    return fits


def _point(tried: Try) -> tuple[int, int]:
    """(images, bytes) of what fits."""
    return (tried.settings["batch"], tried.plan.memory.total) if tried.plan else (0, 0)


def _doublings(points: list[tuple[int, int]], fits: Try) -> int:
    """How often the batch can be doubled by the line through the last two points; at least once."""
    (small, less), (large, more) = points[-2:]
    if more <= less or fits.plan is None or fits.plan.limit is None:
        return 1
    most = large + (fits.plan.limit - more) * (large - small) / (more - less)
    return max(1, int(math.log2(most / large)))


def _fewest_chips(compiler: Compiler, config: Any, name: str | None) -> Found:
    family = (name or "").partition(":")[0]
    for shape in topology.KNOWN[family]:
        try:
            compiler.move(f"{family}:{shape}")
        except Undivided as problem:
            compiler.say(f"{family}:{shape}: {problem}", True)
            continue
        tried = compiler.compile(_most_sparing(config, compiler.axes))
        if tried.fits:
            return _fastest(compiler, compiler.axes, tried)
    raise UserError(
        f"batch={config.batch} fits no slice of {family} that is known here, sparing all that can "
        "be spared; a smaller batch may, or another family"
    )


def _fastest(compiler: Compiler, axes: Axes, tried: Try) -> Found:
    """Gives back what need not be spared; what was tried last, most sparing, fits."""
    for field, values in axes.items():
        faster = (compiler.compile({**tried.settings, field: value}) for value in values)
        tried = next(other for other in faster if other.fits)
    assert tried.plan is not None
    return Found(tried.plan, tried.settings, tuple(compiler.tries))


def _most_sparing(config: Any, axes: Axes) -> Settings:
    sparing = {field: values[-1] for field, values in axes.items()}
    return {"batch": config.batch, **sparing, "mesh.fsdp": 1}

"""Searches the settings that trade memory for time, by compiling with them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.errors import UserError
from vit_jax.plan import compiling, topology
from vit_jax.plan.report import Plan

Say = Callable[[str], None]

# From the fastest to the most sparing: accumulation costs less than computing twice.
_REMAT = (False, "qkv,attention,mlp", "qkv,attention", True)
_MOST_PARTS = 8


def search(config: ConfigDict, name: str | None, num_classes: int, goal: str, *, say: Say) -> Plan:
    """The plan of the best settings that fit.

    Args:
      name: The topology; None is this machine.
      goal: 'batch' for the largest batch of `config.batch` times a power of 2, on this topology;
        'chips' for the smallest slice of its family on which `config.batch` fits.
      say: Gets a line for every try.

    Raises:
      UserError: where nothing fits.
    """
    if goal == "batch":
        return _largest_batch(config, name, num_classes, say)
    return _fewest_chips(config, name, num_classes, say)


def _largest_batch(config: ConfigDict, name: str | None, num_classes: int, say: Say) -> Plan:
    devices = topology.devices(name)
    best: Plan | None = None
    for doublings in itertools.count():
        larger = _changed(config, batch=config.batch * 2**doublings)
        found = _first_fit(larger, name, devices, num_classes, say, parts=(1,))
        if found is None:
            break
        best = found
    if best is not None:
        return best
    raise UserError(f"batch={config.batch} fits {name} with no setting; --fit chips asks for more")


def _fewest_chips(config: ConfigDict, name: str | None, num_classes: int, say: Say) -> Plan:
    if name is None:
        raise UserError("--fit chips needs a --topology, whose family is searched")
    family = name.partition(":")[0]
    topology.devices(name)  # Raises for one that is unknown.
    parts = [n for n in (1, 2, 4, 8) if n <= _MOST_PARTS]
    for shape in topology.KNOWN[family]:
        smaller = f"{family}:{shape}"
        devices = topology.devices(smaller)
        if config.batch % len(devices):
            say(f"{smaller}: {len(devices)} devices do not divide the batch of {config.batch}")
            continue
        if found := _first_fit(config, smaller, devices, num_classes, say, parts):
            return found
    raise UserError(f"batch={config.batch} fits no slice of {family} that is known here")


def _first_fit(
    config: ConfigDict,
    name: str | None,
    devices: Sequence[Any],
    num_classes: int,
    say: Say,
    parts: Sequence[int],
) -> Plan | None:
    for changes, settings in _settings(config, len(devices), parts):
        label = f"{name or 'this machine'} batch={config.batch} {_words(changes)}: "
        try:
            step = compiling.lower(settings, devices, num_classes)
            plan = compiling.compile_step(step, settings, name)
        except compiling.DoesNotFit as error:
            over = error.needed - error.available
            say(f"{label}{over / 2**30:.2f} GiB too much")
            continue
        seconds = f", {1e3 * max(plan.seconds.values()):.0f} ms" if plan.seconds else ""
        size = f"{plan.memory.total / 1e9:.2f} GB{seconds}"
        say(f"{label}{size}{'' if plan.fits is not False else ', too much'}")
        if plan.fits is None:
            raise UserError(f"how much memory a {plan.device_kind} has is not known here")
        if plan.fits:
            return plan
    return None


def _settings(
    config: ConfigDict, devices: int, parts: Sequence[int]
) -> Iterator[tuple[dict[str, Any], ConfigDict]]:
    """Each change, and the config with it; the fastest first."""
    has_blocks = config.model.get("transformer") is not None
    for fsdp in (1, devices) if devices > 1 else (1,):
        for remat in _REMAT if has_blocks else (False,):
            for accum_steps in parts:
                if config.batch % (devices * accum_steps):
                    continue
                changes = {"fsdp": fsdp, "remat": remat, "accum_steps": accum_steps}
                yield changes, _with(config, **changes)


def _with(config: ConfigDict, fsdp: int, remat: bool | str, accum_steps: int) -> ConfigDict:
    settings = _changed(config, accum_steps=accum_steps)
    settings.mesh = {"data": -1, "fsdp": fsdp, "model": 1}
    if config.model.get("transformer") is not None:
        settings.model.transformer.remat = remat
    return settings


def _changed(config: ConfigDict, **fields: Any) -> ConfigDict:
    settings = config.copy_and_resolve_references().unlock()
    for field, value in fields.items():
        settings[field] = value
    return settings


def _words(changes: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in changes.items())

"""Devices that need not exist: one or several TPU slices by name, for their compiler alone."""

import contextlib
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from vit_jax.errors import UserError

# Family -> shapes that the compiler was seen to load, the smallest first. Others of the family are
# tried all the same.
KNOWN = {
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "tpu7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
}
# What JAX shows as one device of a v4 is a chip, whose two cores work as one.
_CHIP_CONFIG = {"v4": {"chip_config_name": "megacore"}}
_NAME = re.compile(r"(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+){1,2})")
# The compiler alone: no metadata server, no lock on chips that are not there, no words about it.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
}


def devices(name: str | None) -> Sequence[Any]:
    """The devices of a topology such as 'v5e:4x4' or '2*v5e:4x4'; this machine's for None.

    Raises:
      UserError: for a topology that the compiler does not know, or without the compiler.
    """
    if name is None:
        return jax.devices()
    count, family, shape = _parsed(name)
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    _require_libtpu()
    from jax.experimental import topologies

    options = {"num_slices": count} if count > 1 else {}
    options |= _CHIP_CONFIG.get(family, {})
    try:
        return topologies.get_topology_desc(f"{family}:{shape}", "tpu", **options).devices
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        if "lockfile" in reason:
            raise UserError(
                "another process has the TPU compiler to itself: wait for it to end, or let both "
                "have it, with ALLOW_MULTIPLE_LIBTPU_LOAD=1 in the environment"
            ) from error
        raise _unknown(name, reason) from error


def family(name: str) -> tuple[str, list[str]]:
    """What comes before the shape in a topology's name, and all known names that begin with it.

    For '2*v5e:4x4' they are '2*v5e', and '2*v5e:2x2' to '2*v5e:16x16', the smallest first.
    """
    start = name.partition(":")[0]
    return start, [f"{start}:{shape}" for shape in KNOWN[_parsed(name)[1]]]


def _parsed(name: str) -> tuple[int, str, str]:
    """Number of slices, family and shape of one slice.

    Raises:
      UserError: for a name that is not so made, or an unknown family.
    """
    found = _NAME.fullmatch(name)
    if not found or found[2] not in KNOWN or (found[1] and int(found[1]) < 1):
        raise _unknown(name)
    return int(found[1] or 1), found[2], found[3]


def _require_libtpu() -> None:
    with contextlib.suppress(ImportError):
        import libtpu  # noqa: F401

        return
    raise UserError(
        'a topology needs the TPU compiler: pip install "vit-jax[tpu]". It runs on any Linux '
        "machine; no TPU is needed."
    )


def _unknown(name: str, reason: str = "") -> UserError:
    family = name.partition(":")[0].rpartition("*")[2]
    families = {family: KNOWN[family]} if family in KNOWN else KNOWN
    known = "; ".join(f"{family}: {', '.join(shapes)}" for family, shapes in families.items())
    because = f" ({reason})" if reason else ""
    return UserError(
        f"unknown topology {name!r}{because}; expected family:shape, such as v5e:4x4, or "
        f"2*v5e:4x4 for two slices. Known: {known}"
    )

"""Finds the collectives, by which devices exchange data, in a compiled program."""

import dataclasses
import re
from collections.abc import Iterator

from vit_jax.plan import hlo
from vit_jax.plan.hlo import Computation, Instruction, Module

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# What is added to the kind of a collective between TPU slices, which the compiler makes of the
# one over all devices: inside each slice a part of it remains, and each chip hands its share to a
# runtime (named Megascale) that exchanges it over the data-centre network.
BETWEEN_SLICES = " between slices"
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: One of `KINDS`; between slices with `BETWEEN_SLICES` after it.
      payload: Bytes of its inputs or of its outputs, whichever are more, without padding.
      channel: Name that all instructions of the collective share; '' if it has no channel.
    """

    kind: str
    payload: int
    channel: str


def collective(
    instruction: Instruction, computation: Computation, module: Module
) -> Collective | None:
    """The collective that an instruction of `computation` takes part in; None if there is none.

    On TPU a collective may begin in one fusion, go on in other fusions that compute something else
    meanwhile, and end in yet another fusion. All of these fusions name the collective's channel.
    """
    if (between := _MEGASCALE.search(instruction.attributes)) and instruction.opcode == "send":
        kind = between[1].lower().replace("_", "-") + BETWEEN_SLICES
        sent = sum(array.payload for array in hlo.inputs(instruction, computation))
        return Collective(kind, sent, "")
    found = list(_within(instruction, computation, module))
    if not found:
        return None
    inner, place = min(found, key=lambda pair: pair[0].opcode)
    kind = inner.opcode.removesuffix("-start")
    # A reduce-scatter is compiled as a fusion of an all-reduce and the slice that a device keeps.
    opcodes = set(module.opcodes(instruction.called()))
    if kind == "all-reduce" and opcodes & {"slice", "dynamic-slice"}:
        kind = "reduce-scatter"
    channel = re.search(r"channel_id=(\d+)", inner.attributes)
    payload = max(
        sum(array.payload for array in hlo.inputs(inner, place)),
        sum(array.payload for array in hlo.outputs(inner, place)),
    )
    return Collective(kind, payload, channel[1] if channel else "")


def _within(
    instruction: Instruction, computation: Computation, module: Module
) -> Iterator[tuple[Instruction, Computation]]:
    if instruction.opcode.removesuffix("-start") in KINDS:
        yield instruction, computation
        return
    place = module.computations.get(instruction.called() or "", Computation())
    for inner in place.values():
        yield from _within(inner, place, module)

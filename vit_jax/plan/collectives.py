"""What devices tell each other: the collectives of a compiled program."""

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


@dataclasses.dataclass(frozen=True)
class Collective:
    """One of `KINDS`.

    Attributes:
      payload: The larger of what goes in and comes out, in bytes.
      channel: The same for all instructions that take part in it; '' where there is none.
    """

    kind: str
    payload: int
    channel: str


def collective(
    instruction: Instruction, computation: Computation, module: Module
) -> Collective | None:
    """What `instruction`, of `computation`, does or helps to do of a collective.

    On TPU a collective may be begun in one fusion, go on inside of others, which compute something
    else meanwhile, and end in another one. All of them name its channel.
    """
    found = list(_within(instruction, computation, module))
    if not found:
        return None
    inner, place = min(found, key=lambda pair: pair[0].opcode)
    kind = inner.opcode.removesuffix("-start")
    # A reduction of which each device keeps its part comes as a fusion of the two.
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

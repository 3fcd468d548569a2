"""Counts the work of a compiled program from its instructions.

`compiled.cost_analysis()` counts the body of a loop once and arrays in on-chip memory as traffic.
Here loops count as often as they run, on-chip operands do not count, tiles count with their
padding, and a fusion that reads a slice of an operand reads that slice.
"""

import collections
import dataclasses
import functools
import re

from vit_jax.plan import hlo
from vit_jax.plan.collectives import BETWEEN_SLICES, Collective, collective
from vit_jax.plan.hlo import Array, Computation, Instruction, Module

# Operations that move nothing themselves. An operation that ends in -done was counted at its start.
_FREE = frozenset(
    [
        "parameter",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "constant",
        "after-all",
        "partition-id",
        "replica-id",
        "iota",
        "opt-barrier",
        "add-dependency",
    ]
)
_SLICES = ("slice", "dynamic-slice")
_MOVES = {
    "parameter",
    "copy",
    "bitcast",
    "transpose",
    "convert",
    "reshape",
    "tuple",
    "send",
    "recv",
}
_PRODUCTS = {"dot", "convolution"}
# Custom calls that name memory and move nothing.
_VIEWS = ("ConcatBitcast", "SliceBitcast", "AllocateBuffer")


@dataclasses.dataclass
class Work:
    """The work of one class of operations in a step.

    Attributes:
      count: Number of runs of its operations.
      hbm_bytes: Bytes that they read from and write to main memory.
      cycles: Number of cycles that the compiler estimates.
    """

    count: int = 0
    hbm_bytes: int = 0
    cycles: int = 0

    def add(self, times: int, hbm_bytes: int, cycles: int) -> None:
        self.count += times
        self.hbm_bytes += times * hbm_bytes
        self.cycles += times * cycles


@dataclasses.dataclass
class Traffic:
    """The program's work on one device.

    Attributes:
      classes: By class: 'matrix products', 'reductions', 'elementwise', 'moves', 'kernels' and the
        kinds of collectives.
      collectives: Kind (`Collective.kind`) -> (times, payload in bytes: the larger of what goes in
        and comes out; between slices, what a device sends).
      unknown_loops: Number of loops whose number of turns is not known; they count as one turn.
      kernels_unknown: Number of runs of kernels without an estimate of cycles.
      unread: Number of instructions that were not understood (`Module.unread`).
    """

    classes: dict[str, Work]
    collectives: dict[str, tuple[int, int]]
    unknown_loops: int = 0
    kernels_unknown: int = 0
    unread: int = 0

    @property
    def hbm_bytes(self) -> int:
        return sum(work.hbm_bytes for work in self.classes.values())

    @property
    def cycles(self) -> int:
        return sum(work.cycles for work in self.classes.values())

    @property
    def bytes_between_slices(self) -> int:
        """Bytes that the device sends into the data-centre network."""
        found = self.collectives.items()
        return sum(size for kind, (_, size) in found if kind.endswith(BETWEEN_SLICES))

    def most_expensive(self) -> list[tuple[str, Work]]:
        """The classes, by cycles and then by traffic."""
        return sorted(self.classes.items(), key=lambda item: (-item[1].cycles, -item[1].hbm_bytes))


def count(text: str) -> Traffic:
    """Counts the program of this text (`compiled.as_text()`)."""
    counter = _Counter(hlo.parse(text))
    counter.visit(counter.module.entry, 1)
    return counter.traffic


class _Counter:
    def __init__(self, module: Module):
        self.module = module
        self.traffic = Traffic(collections.defaultdict(Work), {}, unread=module.unread)
        self._read = functools.cache(self._fusion_reads)
        self._written = functools.cache(self._fusion_writes)

    def visit(self, name: str, times: int) -> None:
        computation = self.module.computations[name]
        begun: set[str] = set()
        for instruction in computation.values():
            if instruction.opcode == "while":
                body = instruction.called("body")
                self.visit(body or "", times * self._turns(instruction))
            elif instruction.opcode in ("call", "conditional"):
                for branch in _branches(instruction):
                    self.visit(branch, times)
            elif instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
                shared = collective(instruction, computation, self.module)
                self._count(instruction, computation, times, shared)
                if shared and shared.channel not in begun:
                    runs, payload = self.traffic.collectives.get(shared.kind, (0, 0))
                    payload += times * shared.payload
                    self.traffic.collectives[shared.kind] = (runs + times, payload)
                    begun |= {shared.channel} - {""}

    def _count(
        self,
        instruction: Instruction,
        computation: Computation,
        times: int,
        shared: Collective | None,
    ) -> None:
        kind = self._kind(instruction, shared)
        if kind is None:
            return
        moved = self._reads(instruction, computation) + self._writes(instruction, computation)
        cycles = instruction.number("estimated_cycles")
        if kind == "kernels":
            cycles = cycles or _noted_cycles(instruction)
            self.traffic.kernels_unknown += 0 if cycles else times
        self.traffic.classes[kind].add(times, moved, cycles)

    def _kind(self, instruction: Instruction, shared: Collective | None) -> str | None:
        """The class of an instruction, None for one that does nothing."""
        opcode = instruction.opcode.removesuffix("-start")
        if opcode == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
            return None if target and target[1] in _VIEWS else "kernels"
        inner = {opcode, *self.module.opcodes(instruction.called())}
        if inner & _PRODUCTS:
            return "matrix products"  # Also where a collective goes on meanwhile.
        if shared:
            return shared.kind
        if "reduce" in inner or "reduce-window" in inner:
            return "reductions"
        moves = (
            _MOVES | set(_SLICES) | {"get-tuple-element", "fusion", "async", "dynamic-update-slice"}
        )
        starts = {name.removesuffix("-start") for name in inner}
        return "moves" if starts <= moves else "elementwise"

    def _turns(self, loop: Instruction) -> int:
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = self.module.computations.get(loop.called("condition") or "", Computation())
        bounds = [int(n) for i in condition.values() if (n := _constant(i))]
        if not bounds:
            self.traffic.unknown_loops += 1
        return max(bounds, default=1)

    def _reads(self, instruction: Instruction, computation: Computation) -> int:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in _SLICES or (opcode == "dynamic-update-slice"):
            # The slice that is read is as large as that which is written.
            source = computation.get(instruction.operands[0])
            outside = source is not None and any(a.in_main_memory for a in source.arrays)
            return _size(_touched(instruction, computation)) if outside else 0
        parts = self._read(instruction.called()) if instruction.opcode == "fusion" else {}
        total = 0
        for place, name in enumerate(instruction.operands):
            whole = _main(computation[name].arrays) if name in computation else 0
            total += min(whole, parts.get(place, whole))
        return total

    def _writes(self, instruction: Instruction, computation: Computation) -> int:
        if instruction.opcode == "dynamic-update-slice":
            return _main(_touched(instruction, computation))
        parts = self._written(instruction.called()) if instruction.opcode == "fusion" else {}
        total = 0
        for place, array in enumerate(hlo.outputs(instruction, computation)):
            whole = _main((array,))
            total += min(whole, parts.get(place, whole))
        return total

    def _fusion_reads(self, name: str | None) -> dict[int, int]:
        """Bytes read of each parameter of which a fused computation does not read all."""
        computation = self.module.computations.get(name or "", Computation())
        reads = {}
        for instruction in computation.values():
            if instruction.opcode == "parameter":
                used = [
                    self._use(instruction.name, user)
                    for user in computation.users.get(instruction.name, ())
                ]
                if used and None not in used:
                    reads[int(instruction.argument)] = sum(n or 0 for n in used)
        return reads

    def _use(self, name: str, user: Instruction) -> int | None:
        """Bytes that `user` reads of the parameter `name`; None for all of it."""
        places = [i for i, operand in enumerate(user.operands) if operand == name]
        if user.opcode in _SLICES:
            return _size(user.arrays)
        if user.opcode == "dynamic-update-slice" and places == [0]:
            return 0
        if user.opcode == "fusion":
            inner = self._read(user.called())
            if all(place in inner for place in places):
                return sum(inner[place] for place in places)
        return None

    def _fusion_writes(self, name: str | None) -> dict[int, int]:
        """Bytes written of each result of which a fused computation updates a slice in place."""
        computation = self.module.computations.get(name or "")
        if not computation:
            return {}
        root = computation.root
        results = root.operands if root.opcode == "tuple" else (root.name,)
        sizes = {i: self._updated(result, computation) for i, result in enumerate(results)}
        return {i: size for i, size in sizes.items() if size is not None}

    def _updated(self, name: str, computation: Computation) -> int | None:
        instruction = computation.get(name)
        if instruction is None:
            return None
        if instruction.opcode == "bitcast":
            return self._updated(instruction.operands[0], computation)
        if instruction.opcode == "dynamic-update-slice":
            return _size(computation[instruction.operands[1]].arrays)
        if instruction.opcode == "fusion" and len(instruction.arrays) == 1:
            return self._written(instruction.called()).get(0)
        return None


def _branches(instruction: Instruction) -> list[str]:
    names = [instruction.called(a) for a in ("to_apply", "true_computation", "false_computation")]
    if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes):
        names += [name.strip().removeprefix("%") for name in listed[1].split(",")]
    return [name for name in names if name]


def _touched(instruction: Instruction, computation: Computation) -> tuple[Array, ...]:
    """The slice that is read or written."""
    if instruction.opcode == "dynamic-update-slice":
        return computation[instruction.operands[1]].arrays
    return hlo.outputs(instruction, computation)


def _constant(instruction: Instruction) -> str:
    return (
        instruction.argument
        if instruction.opcode == "constant" and instruction.argument.isdigit()
        else ""
    )


def _noted_cycles(instruction: Instruction) -> int:
    """What a Pallas kernel says of itself: see `metadata` of `pallas_call`."""
    found = re.search(r"estimated_cycles\D{1,8}(\d+)", instruction.attributes)
    return int(found[1]) if found else 0


def _main(arrays: tuple[Array, ...]) -> int:
    return _size(tuple(a for a in arrays if a.in_main_memory))


def _size(arrays: tuple[Array, ...]) -> int:
    return sum(array.num_bytes for array in arrays)

"""Reads the text of a compiled program (`compiled.as_text()`) into instructions, without JAX.

XLA prints the text after all its passes. It has fusions, layouts with their tiles, memory spaces,
and the notes of the compiler about each instruction. Arrays of a dtype that is not known here are
left out, so that their bytes count 0; `Module.unread` is the number of instructions that have one,
or whose line cannot be read.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
    "pred": 8,
    **{f"{kind}{bits}": bits for kind in "su" for bits in (2, 4, 8, 16, 32, 64)},
    **{"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
}
_WITHOUT_BYTES = ("token", "opaque")  # Types of results that hold no numbers.
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a result.

    Attributes:
      order: Dimensions in the order of memory, the fastest-varying dimension first.
      tile: Sizes of the tile in the fastest-varying dimensions, of which the fastest comes last. A
        dimension is padded to a multiple of its tile.
      space: Memory space: 0 is the device's main memory, 1 a TPU's on-chip memory, 5 the host's.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def in_main_memory(self) -> bool:
        return self.space == 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the array, with the padding of its tiles."""
        dims = list(self.dims)
        for dim, size in zip(self.order, reversed(self.tile), strict=False):
            dims[dim] = -(-dims[dim] // size) * size
        return math.prod(dims) * self._bits // 8

    @property
    def payload(self) -> int:
        """Bytes of the array, without padding."""
        return math.prod(self.dims) * self._bits // 8

    @property
    def _bits(self) -> int:
        return 8 if self.dtype.startswith("f8") else _BITS.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of the program.

    Attributes:
      arrays: Leaves of the result, without those of a dtype that is not known here.
      operands: Names of the instructions whose results are the operands.
      argument: Text between the parentheses of the call.
      attributes: Text after the call: attributes and metadata.
      is_root: Whether the result is the result of the computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    is_root: bool

    def called(self, attribute: str = "calls") -> str | None:
        """The name of the computation that an attribute names; None without the attribute."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found and found[1]

    def number(self, field: str) -> int:
        """A number that the compiler noted, such as `estimated_cycles`; 0 if it noted none."""
        found = re.search(rf'"{field}":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0


class Computation(dict[str, Instruction]):
    """The instructions of a computation by name, in order."""

    @functools.cached_property
    def root(self) -> Instruction:
        return next((i for i in self.values() if i.is_root), list(self.values())[-1])

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {}
        for instruction in self.values():
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
        return users


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program.

    Attributes:
      computations: All computations by name.
      entry: Name of the computation at which the program starts.
      unread: Instructions that were not understood: their line cannot be read, or their result has
        an array of an unknown dtype, whose bytes count 0.
    """

    computations: dict[str, Computation]
    entry: str
    unread: int = 0

    def opcodes(self, computation: str | None) -> Iterator[str]:
        """All opcodes of a computation and of those that it calls."""
        for instruction in self.computations.get(computation or "", Computation()).values():
            yield instruction.opcode
            yield from self.opcodes(instruction.called())


def parse(text: str) -> Module:
    """The program of a text that `compiled.as_text()` gives.

    Raises:
      ValueError: for a text without an entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current, unread = None, None, 0
    for line in _whole_lines(text):
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], Computation())
            entry = header[2] if header[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            if instruction is not None:
                current[instruction.name] = instruction
            unread += instruction is None or _has_unknown_dtype(found[3])
    if entry is None:
        raise ValueError("the text of the program has no ENTRY computation")
    return Module(computations, entry, unread)


def _whole_lines(text: str) -> Iterator[str]:
    """The text with one line for each instruction; XLA prints a kernel's metadata on several."""
    whole = ""
    for line in text.splitlines():
        if _INSTRUCTION.match(line) or _HEADER.match(line) or line == "}":
            yield whole
            whole = line
        else:
            whole += line.strip()
    yield whole


def inputs(instruction: Instruction, computation: Computation) -> list[Array]:
    """The arrays of those operands of an instruction that are instructions of `computation`."""
    known = (computation[name] for name in instruction.operands if name in computation)
    return [array for operand in known for array in operand.arrays]


def outputs(instruction: Instruction, computation: Computation) -> tuple[Array, ...]:
    """The arrays that an instruction makes.

    The result of an instruction that starts an asynchronous operation also holds its operands and
    its state, which are left out here.
    """
    made = instruction.arrays
    if instruction.opcode in ("copy-start", "recv"):
        return made[:1]
    if instruction.opcode == "send":
        return ()
    if instruction.opcode in ("all-gather-start", "collective-permute-start", "slice-start"):
        count = len(inputs(instruction, computation))
        return made[count : 2 * count]
    if instruction.opcode == "async-start":
        return made[len(inputs(instruction, computation)) :][:1]
    return made


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape in XLA's text, tuples flattened; unknown dtypes are left out."""
    return tuple(
        Array(dtype, _numbers(dims), *_layout(layout))
        for dtype, dims, layout in _ARRAY.findall(_COMMENT.sub("", shape))
        if dtype in _BITS or dtype.startswith("f8")
    )


def _has_unknown_dtype(rest: str) -> bool:
    shape = _COMMENT.sub("", _split(rest)[0])
    found = [dtype for dtype, _, _ in _ARRAY.findall(shape)]
    return any(d not in {*_BITS, *_WITHOUT_BYTES} and not d.startswith("f8") for d in found)


def _split(rest: str) -> tuple[str, str]:
    """The text of an instruction after its name, as the shape of the result and the call."""
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    return rest[:end], rest[end:].lstrip()


def _instruction(name: str, rest: str, is_root: bool) -> Instruction | None:
    shape, call = _split(rest)
    opcode = re.match(r"([\w\-]+)\(", call)
    if opcode is None:
        return None
    start = opcode.end() - 1
    end = start + _closing(call[start:])
    argument = call[start + 1 : end]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(name, opcode[1], arrays(shape), operands, argument, call[end + 1 :], is_root)


def _closing(text: str) -> int:
    """The index of the parenthesis that closes the one with which `text` begins."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i
    return len(text)


def _layout(text: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    order, _, rest = text.partition(":")
    tile = re.search(r"T\(([0-9,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    return _numbers(order), _numbers(tile[1]) if tile else (), int(space[1]) if space else 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)

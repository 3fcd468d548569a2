"""A plan of a training step, and the texts and tables that report it."""

import dataclasses
from typing import Any

from vit_jax.plan.chips import Chip, chip
from vit_jax.plan.traffic import Traffic

_COMPILED = "Compiled, not run."
_TIMES = (
    "Compiled, not run: cycles are the compiler's static model, without waits for memory or for "
    "other devices; a TPU kernel's are fitted to its schedules for v5e."
)
_TRAFFIC = (
    "HBM traffic is counted from the final program: loops as often as they run, what stays on the "
    "chip left out, padding of tiles included."
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. The state is argument and, in place, output: it counts once."""

    arguments: int
    temporaries: int
    outputs: int
    program: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs + self.program


@dataclasses.dataclass(frozen=True)
class Plan:
    """One compiled step on one device of `devices`.

    Attributes:
      limit: Bytes that a program can have on the device, None where that is not known.
      image_flops: Floating point operations of the model for one training image, without what is
        recomputed.
      compile_seconds: On this machine.
      optimizer_bytes: Bytes of the optimizer's state on one device, part of the arguments.
      optimizer_flops: Floating point operations of an update's matrix products, if no axis of the
        mesh splits the matrices.
    """

    topology: str
    device_kind: str
    devices: int
    mesh: dict[str, int]
    batch: int
    accum_steps: int
    image_flops: float | None
    memory: Memory
    traffic: Traffic
    compile_seconds: float
    limit: float | None = None
    notes: tuple[str, ...] = ()
    optimizer_bytes: int = 0
    optimizer_flops: float = 0.0

    @property
    def chip(self) -> Chip:
        return chip(self.device_kind)

    @property
    def flops(self) -> float | None:
        """Floating point operations of the model in one step, on one device."""
        return self.image_flops and self.image_flops * self.batch / self.devices

    @property
    def fits(self) -> bool | None:
        """None where the device's memory is not known."""
        return None if self.limit is None else self.memory.total <= self.limit

    @property
    def seconds(self) -> dict[str, float]:
        """Least time of a step by each limit that is known: compute, hbm, cycles, network."""
        limits = {
            "compute": (self.flops, self.chip.flops),
            "hbm": (self.traffic.hbm_bytes, self.chip.bandwidth),
            "cycles": (self.traffic.cycles or None, self.chip.clock),
            "network": (self.traffic.bytes_between_slices, self.chip.network),
        }
        return {k: work / speed for k, (work, speed) in limits.items() if work and speed}

    @property
    def utilisation_bound(self) -> float | None:
        """Share of the peak that the model's FLOPs can reach at best."""
        if "compute" not in self.seconds:
            return None
        return self.seconds["compute"] / max(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON; bytes, seconds and FLOPs on one device."""
        return {
            "topology": self.topology,
            "device_kind": self.device_kind,
            "devices": self.devices,
            "mesh": self.mesh,
            "batch": self.batch,
            "accum_steps": self.accum_steps,
            "memory": {**dataclasses.asdict(self.memory), "total": self.memory.total},
            "hbm_bytes": self.limit,
            "fits": self.fits,
            "flops": self.flops,
            "optimizer": {"bytes": self.optimizer_bytes, "flops": self.optimizer_flops},
            "hbm_traffic": self.traffic.hbm_bytes,
            "cycles": self.traffic.cycles,
            "instructions_not_understood": self.traffic.unread,
            "kernel_runs_without_cycles": self.traffic.kernels_unknown,
            "classes": {k: dataclasses.asdict(w) for k, w in self.traffic.classes.items()},
            "collectives": {
                kind: {"count": count, "bytes": size}
                for kind, (count, size) in self.traffic.collectives.items()
            },
            "seconds": self.seconds,
            "utilisation_bound": self.utilisation_bound,
            "compile_seconds": self.compile_seconds,
            "notes": list(self.notes),
        }


def lines(plan: Plan) -> list[str]:
    """The report's head, for people."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    parts = f" in {plan.accum_steps} parts" if plan.accum_steps > 1 else ""
    images = plan.batch // plan.devices
    text = [
        f"{plan.topology}: {plan.devices} × {plan.device_kind} ({mesh or 'one device'})",
        f"batch {plan.batch}{parts}, {images} images a device; compiled in "
        f"{plan.compile_seconds:.0f} s. On each device, a step:",
        f"  memory       {memory_use(plan)}",
        f"               {memory_parts(plan)}",
    ]
    if plan.flops:
        text.append(f"  FLOPs        {plan.flops / 1e12:.3g} T, of the model alone")
    if plan.optimizer_bytes:
        text.append(f"  optimizer    {optimizer_cost(plan)}")
    text.append(f"  HBM traffic  {_gb(plan.traffic.hbm_bytes)} GB")
    if between := plan.traffic.bytes_between_slices:
        speed = plan.chip.network
        known = f" at {speed / 1e9:.4g} GB/s" if speed else "; its speed is not known here"
        text.append(f"  network      {_gb(between)} GB between slices{known}")
    if plan.seconds:
        text.append(f"  time         {least_time(plan)}")
    if plan.utilisation_bound is not None:
        text.append(f"  utilisation  at most {plan.utilisation_bound:.0%} of the peak FLOP/s")
    return text


def least_time(plan: Plan) -> str:
    """By each limit that is known."""
    names = {
        "compute": "FLOPs at peak",
        "hbm": "HBM traffic",
        "cycles": "estimated cycles",
        "network": "between slices",
    }
    limits = ", ".join(f"{names[k]} {1e3 * s:.1f}" for k, s in plan.seconds.items())
    return f"at least {1e3 * max(plan.seconds.values()):.1f} ms ({limits})"


def memory_use(plan: Plan) -> str:
    """What is needed, and of how much."""
    total, limit = plan.memory.total, plan.limit
    if limit is None:
        return f"{_gb(total)} GB"
    verdict = "fits" if plan.fits else f"DOES NOT FIT, {_gb(total - limit)} GB too much"
    return f"{_gb(total)} GB of {_gb(limit)}: {verdict}"


def memory_parts(plan: Plan) -> str:
    """What it is needed for."""
    parts = dataclasses.asdict(plan.memory).items()
    return ", ".join(f"{name} {_gb(size)}" for name, size in parts)


def optimizer_cost(plan: Plan) -> str:
    """The optimizer's state, and what its matrix products add to the FLOPs of the model."""
    state = f"state {_gb(plan.optimizer_bytes)} GB"
    if not plan.optimizer_flops:
        return state
    return f"{state}; {plan.optimizer_flops / 1e12:.3g} T FLOPs more, unless fsdp or model split it"


def class_table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the classes of operations, the most expensive first.

    Cycles stand there where the compiler estimates them, milliseconds where the clock is known.
    """
    columns, clock = ["class", ">count", ">HBM GB"], plan.chip.clock
    if plan.traffic.cycles:
        columns += [">1000 cycles", ">ms"] if clock else [">1000 cycles"]
    rows = []
    for name, work in plan.traffic.most_expensive():
        row = [name, f"{work.count:,}", _gb(work.hbm_bytes), f"{work.cycles / 1e3:,.0f}"]
        rows.append([*row, f"{1e3 * work.cycles / (clock or 1):.2f}"][: len(columns)])
    return columns, rows


def collective_rows(plan: Plan) -> list[tuple[str, str, str]]:
    """(kind, count, MB)."""
    return [
        (kind, f"{count:,}", f"{size / 1e6:,.1f}")
        for kind, (count, size) in sorted(plan.traffic.collectives.items())
    ]


def caveats(plan: Plan) -> list[str]:
    """Sentences about the limits of the figures."""
    traffic = plan.traffic
    text = [*plan.notes, _TIMES if traffic.cycles else _COMPILED, _TRAFFIC]
    if traffic.kernels_unknown and traffic.cycles:
        text.append(f"{traffic.kernels_unknown} runs of kernels have no estimate of cycles.")
    if traffic.bytes_between_slices:
        text.append(
            "Between slices counts what a device hands to the data-centre network; over more than "
            "two slices a sum moves up to twice as much."
        )
    if traffic.unknown_loops:
        text.append(f"{traffic.unknown_loops} loops of unknown length are counted once.")
    if traffic.unread:
        text.append(
            f"{traffic.unread} instructions were not understood: arrays of unknown types count "
            "0 bytes."
        )
    return text


def _gb(size: float) -> str:
    """A size in gigabytes; small sizes are given with more digits."""
    gb = size / 1e9
    if 0 < gb < 0.0005:
        return "<0.001"
    return f"{gb:.2f}" if gb >= 0.1 or gb == 0 else f"{gb:.3f}"

"""What a plan says."""

import dataclasses
from typing import Any

from vit_jax.plan.chips import Chip, chip
from vit_jax.plan.traffic import Traffic

CAVEATS = (
    "Compiled, not run: the cycles are the compiler's static model, without waits for memory or "
    "for other devices; a TPU kernel's are those of its schedule for v5e, fitted.",
    "HBM traffic is counted from the final program: loops as often as they run, operands in "
    "on-chip memory left out, padding of tiles included.",
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
      image_flops: Of the model, for one training image; what is recomputed does not count.
      compile_seconds: On this machine.
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

    @property
    def chip(self) -> Chip:
        return chip(self.device_kind)

    @property
    def flops(self) -> float | None:
        """Of the model in a step, on one device."""
        return self.image_flops and self.image_flops * self.batch / self.devices

    @property
    def fits(self) -> bool | None:
        """None where the device's memory is not known."""
        return None if self.limit is None else self.memory.total <= self.limit

    @property
    def seconds(self) -> dict[str, float]:
        """Least time of a step by each limit that is known: compute, hbm, cycles."""
        limits = {
            "compute": (self.flops, self.chip.flops),
            "hbm": (self.traffic.hbm_bytes, self.chip.bandwidth),
            "cycles": (self.traffic.cycles or None, self.chip.clock),
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
            "hbm_traffic": self.traffic.hbm_bytes,
            "cycles": self.traffic.cycles,
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
    memory = plan.memory
    text = [
        f"{plan.topology}: {plan.devices} × {plan.device_kind} ({mesh or 'one device'}), batch "
        f"{plan.batch}{parts}, {plan.batch // plan.devices} images a device",
        f"memory      {_gb(memory.total)} GB a device: arguments {_gb(memory.arguments)}, "
        f"temporaries {_gb(memory.temporaries)}, outputs {_gb(memory.outputs)}, program "
        f"{_gb(memory.program)}{_verdict(plan)}",
    ]
    if plan.flops:
        text.append(f"work        {plan.flops / 1e12:.2f} TFLOP of the model")
    text.append(f"HBM traffic {_gb(plan.traffic.hbm_bytes)} GB")
    if plan.seconds:
        names = {"compute": "products at peak", "hbm": "HBM", "cycles": "estimated cycles"}
        limits = ", ".join(f"{names[k]} {1e3 * s:.1f} ms" for k, s in plan.seconds.items())
        text.append(f"at least    {limits}")
    if plan.utilisation_bound is not None:
        text.append(f"utilisation at most {plan.utilisation_bound:.0%} of the peak")
    text.append(f"compiled in {plan.compile_seconds:.0f} s")
    return text


def class_rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    """(class, count, GB of traffic, thousands of cycles), the most expensive first."""
    works = sorted(
        plan.traffic.classes.items(), key=lambda item: (-item[1].cycles, -item[1].hbm_bytes)
    )
    return [(k, f"{w.count:,}", _gb(w.hbm_bytes), f"{w.cycles / 1e3:,.0f}") for k, w in works]


def collective_rows(plan: Plan) -> list[tuple[str, str, str]]:
    """(kind, count, MB)."""
    return [
        (kind, f"{count:,}", f"{size / 1e6:,.1f}")
        for kind, (count, size) in sorted(plan.traffic.collectives.items())
    ]


def caveats(plan: Plan) -> list[str]:
    text = [*plan.notes, *CAVEATS]
    if plan.traffic.kernels_unknown:
        text.append(f"{plan.traffic.kernels_unknown} runs of kernels have no estimate of cycles.")
    if plan.traffic.unknown_loops:
        text.append(f"{plan.traffic.unknown_loops} loops of unknown length are counted once.")
    return text


def _verdict(plan: Plan) -> str:
    if plan.limit is None:
        return ""
    if plan.fits:
        return f"; fits, {_gb(plan.limit)} there are"
    over = _gb(plan.memory.total - plan.limit)
    return f"; DOES NOT FIT: {over} more than the {_gb(plan.limit)} there are"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"

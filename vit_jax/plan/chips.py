"""The facts about a device that the roofline needs. This module does not import JAX."""

import dataclasses

from vit_jax.evaluate.flops import peak_flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX shows it: a chip, or half of one on TPU7x.

    Attributes:
      hbm_bytes: Bytes of main memory that a program can use; None if not known here.
      bandwidth: Bandwidth of main memory in bytes/s; None if not known.
      clock: Frequency of the cycles that the compiler estimates, in Hz; None if not known.
      flops: Peak speed of dense bfloat16 products in FLOP/s; None if not known.
      network: Bandwidth of its share of the data-centre network, which joins TPU slices, in
        bytes/s and in each direction; None if not known.
    """

    hbm_bytes: float | None = None
    bandwidth: float | None = None
    clock: float | None = None
    flops: float | None = None
    network: float | None = None


# Memory and bandwidth are from Google's TPU system architecture pages and NVIDIA's data sheets. A
# program can use less than all memory of a TPU: the message of the compiler that memory ran out
# says how much (15.75 of the 16 GiB of a v5e). The clock is the peak speed divided by the
# operations of all matrix units in a cycle; a v5e has 4 units of 128 x 128. The network is from
# Google's pages too: 6.4 Tbit/s for the 256 chips of a v5e pod, 25.6 for those of a v6e pod, and 50
# Gbit/s for a v5p chip.
_KNOWN = {
    "TPU v4": (32 * 2**30, 1228e9, 1.05e9, None),
    "TPU v5 lite": (15.75 * 2**30, 819e9, 1.5e9, 3.125e9),
    "TPU v5e": (15.75 * 2**30, 819e9, 1.5e9, 3.125e9),
    "TPU v5": (95 * 2**30, 2765e9, 1.75e9, 6.25e9),
    "TPU v6 lite": (31.25 * 2**30, 1640e9, 1.75e9, 12.5e9),
    "TPU v6e": (31.25 * 2**30, 1640e9, 1.75e9, 12.5e9),
    "TPU7x": (96 * 2**30, 3690e9, None, None),
    "NVIDIA A100": (None, 2039e9, None, None),
    "NVIDIA H100": (None, 3350e9, None, None),
    "NVIDIA H200": (None, 4800e9, None, None),
}


def chip(device_kind: str) -> Chip:
    """The known facts about a kind of device (`device.device_kind`); a CPU's are all None."""
    fits = [kind for kind in _KNOWN if device_kind.lower().startswith(kind.lower())]
    memory, bandwidth, clock, network = _KNOWN[max(fits, key=len)] if fits else (None,) * 4
    return Chip(memory, bandwidth, clock, peak_flops(device_kind), network)

"""What the roofline needs to know of a device. No JAX here."""

import dataclasses

from vit_jax.evaluate.flops import peak_flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX shows it: a chip, or half of one on TPU7x.

    Attributes:
      hbm_bytes: Main memory that a program can have, None where it is not known here.
      bandwidth: Of main memory, bytes/s.
      clock: Hz, of the compiler's cycles.
      flops: Peak of dense bfloat16 products, FLOP/s.
    """

    hbm_bytes: float | None = None
    bandwidth: float | None = None
    clock: float | None = None
    flops: float | None = None


# Memory and bandwidth: Google's TPU system architecture pages and NVIDIA's data sheets. Of a TPU's
# memory a program gets what the compiler says when it runs out (15.75 of a v5e's 16 GiB). The clock
# is the peak divided by what the matrix units multiply in a cycle: v5e has 4 of 128 x 128.
_KNOWN = {
    "TPU v4": (32 * 2**30, 1228e9, 1.05e9),
    "TPU v5 lite": (15.75 * 2**30, 819e9, 1.5e9),
    "TPU v5e": (15.75 * 2**30, 819e9, 1.5e9),
    "TPU v5": (95 * 2**30, 2765e9, 1.75e9),
    "TPU v6 lite": (31.25 * 2**30, 1640e9, 1.75e9),
    "TPU v6e": (31.25 * 2**30, 1640e9, 1.75e9),
    "TPU7x": (96 * 2**30, 3690e9, None),
    "NVIDIA A100": (None, 2039e9, None),
    "NVIDIA H100": (None, 3350e9, None),
    "NVIDIA H200": (None, 4800e9, None),
}


def chip(device_kind: str) -> Chip:
    """What is known of it; nothing of a CPU."""
    fits = [kind for kind in _KNOWN if device_kind.lower().startswith(kind.lower())]
    memory, bandwidth, clock = _KNOWN[max(fits, key=len)] if fits else (None, None, None)
    return Chip(memory, bandwidth, clock, peak_flops(device_kind))

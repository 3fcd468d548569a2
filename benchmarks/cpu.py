"""Steps on CPU against peers, the CPU table of RESULTS.md: `python benchmarks/cpu.py`.

Ours and the peers take turns in one process. Bars: a forward pass of B/16 >= 1.1 of timm's speed,
>= 1.0 of timm's under torch.compile (where there is a C++ compiler) and >= 1.2 of the same model
out of Flax's own layers; a training step of S/16 >= timm's.

Every comparison runs twice, the second time with glibc told to keep its memory, as `vit-jax train`
does it: XLA allocates what a step needs anew each time, and Linux then maps it page by page. The
peers have the same allocator, so the second table is a comparison too. Both have the page faults
and the seconds of the kernel that this costs, and the most memory that the process had.
"""

import argparse
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable

from vit_jax.devices import allocator

ALLOCATORS = {"glibc as it is": (), "glibc keeps its memory": ("--keep-memory",)}
COMPARISONS = {"forward": "ViT-B_16", "train": "ViT-S_16"}
BARS = {
    ("forward", "timm"): 1.1,
    ("forward", "timm compiled"): 1.0,
    ("forward", "plain linen"): 1.2,
    ("train", "timm"): 1.0,
}


class Counted:
    """A thing to run, and what the system did meanwhile, on average."""

    def __init__(self, run: Callable[[], object]):
        self._run = run
        self._runs = self._faults = 0
        self._system = 0.0

    def __call__(self) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF)
        self._run()
        after = resource.getrusage(resource.RUSAGE_SELF)
        self._runs += 1
        if self._runs > 2:  # The first ones compile.
            self._faults += after.ru_minflt - before.ru_minflt
            self._system += after.ru_stime - before.ru_stime

    def __str__(self) -> str:
        runs = self._runs - 2
        return f"{self._faults / runs:9,.0f} faults, {self._system / runs:.2f} s in the kernel"


def plain_linen(name: str, batch: int, size: int):
    """A forward pass of a model of this size, of Flax's layers as one would write it down."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from vit_jax.families.registry import resolve

    config = resolve(name).config
    transformer = config.transformer

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            patch = tuple(config.patches["size"])
            x = nn.Conv(config.hidden_size, patch, patch, "VALID", name="embedding")(x)
            x = x.reshape(x.shape[0], -1, x.shape[-1])
            cls = self.param("cls", nn.initializers.zeros, (1, 1, x.shape[-1]))
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], *cls.shape[1:])), x], axis=1)
            x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
            for i in range(transformer.num_layers):
                y = nn.LayerNorm(name=f"norm1_{i}")(x)
                x = x + nn.MultiHeadDotProductAttention(transformer.num_heads, name=f"mha_{i}")(y)
                y = nn.LayerNorm(name=f"norm2_{i}")(x)
                y = nn.gelu(nn.Dense(transformer.mlp_dim, name=f"hidden_{i}")(y))
                x = x + nn.Dense(x.shape[-1], name=f"out_{i}")(y)
            return nn.Dense(1000, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])

    model = Plain()
    images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    forward = jax.jit(model.apply)
    return lambda: jax.block_until_ready(forward(variables, images))


def compare(mode: str, batch: int, size: int, rounds: int) -> None:
    from vit_jax.bench import measuring, ours, theirs

    name = COMPARISONS[mode]
    shape = (name, mode, batch, size, "float32")
    subjects = [ours.subject(*shape, "auto"), theirs.subject(*shape, compiled=False)]
    if mode == "forward" and shutil.which("g++"):
        subjects.append(theirs.subject(*shape, compiled=True))
    if mode == "forward":
        subjects.append(measuring.Subject("plain linen", plain_linen(name, batch, size)))
    counts = {subject.name: Counted(subject.run) for subject in subjects}
    counted = [measuring.Subject(who, run) for who, run in counts.items()]
    timings = measuring.in_turns(counted, batch, rounds)
    for timing in timings:
        ratio = timing.median / timings[0].median
        bar = BARS.get((mode, timing.name))
        print(
            f"{name} {mode} {timing.name:13} {1e3 * timing.median:7,.0f} ms "
            f"({1e3 * min(timing.seconds):,.0f}–{1e3 * max(timing.seconds):,.0f})  "
            f"{counts[timing.name]}"
            + ("" if bar is None else f"  ours is {ratio:.2f} times as fast, bar {bar}"),
            flush=True,
        )
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{name} {mode}: the process had at most {most / 1e6:,.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", nargs="?", choices=COMPARISONS, help="one of them, here and now")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep-memory", action="store_true", help="glibc keeps it, with a mode")
    args = parser.parse_args()
    if args.mode:
        if args.keep_memory:
            allocator.own_process()
            assert allocator.keep_memory(), "the environment tunes malloc, or this is no glibc"
        return compare(args.mode, args.batch, args.image_size, args.rounds)
    for title, flags in ALLOCATORS.items():
        print(f"{title}:", flush=True)
        for mode in COMPARISONS:
            subprocess.run([sys.executable, __file__, mode, *flags, *sys.argv[1:]], check=True)
    return None


if __name__ == "__main__":
    main()

"""Cycles of the attention kernels in the TPU compiler's own schedule, for one step of a grid.

The compiler writes no estimate for a kernel, but it can write out its schedule: instruction
bundles, one a cycle, and how busy each unit is. Needs libtpu, and no TPU.

    python benchmarks/kernel_schedule.py 12,64,197 16,88,257 --topology v5e:2x2
    python benchmarks/kernel_schedule.py 12,64,4097 --kernel flash

A shape is heads,width,tokens. A step of the packed kernel is an image, one of the flash kernel a
block of queries of the heads that lie in one register.
"""

import argparse
import glob
import os
import re
import tempfile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=["12,64,197"])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--kernel", choices=("packed", "flash"), default="packed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Before the compiler is loaded, which reads it once.
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        for shape in args.shapes:
            kernels = packed if args.kernel == "packed" else flash
            compiled(*kernels(*map(int, shape.split(","))), args.topology)
            for direction in ("forward", "backward"):
                kernel = f"{args.kernel}_attention_{direction}"
                print(f"{args.topology} {shape} {kernel}: {schedule(folder, kernel)}", flush=True)
            for path in glob.glob(f"{folder}/*"):
                os.unlink(path)


def packed(count: int, width: int, length: int):
    """The kernel, and its arguments."""
    import jax
    import jax.numpy as jnp

    from vit_jax.layers.attention.packed import Heads, packed_attention

    heads = Heads(count, width)
    arguments = (
        jax.ShapeDtypeStruct((8, length, 3 * heads.lanes), jnp.bfloat16),
        jax.ShapeDtypeStruct((3 * heads.lanes,), jnp.float32),
    )
    return lambda x, b: packed_attention(x, b, heads), arguments


def flash(count: int, width: int, length: int):
    """The kernel, and its arguments."""
    import jax
    import jax.numpy as jnp

    from vit_jax.layers.attention.flash import flash_attention

    return flash_attention, (jax.ShapeDtypeStruct((8, length, count, width), jnp.bfloat16),) * 3


def compiled(kernel, arguments, topology_name: str) -> None:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from vit_jax.plan import topology

    mesh = Mesh(topology.devices(topology_name)[:1], ("data",))
    where = NamedSharding(mesh, PartitionSpec())

    def both(arguments, gradient):
        y, pull = jax.vjp(kernel, *arguments)
        return y, pull(gradient)

    gradient = jax.eval_shape(kernel, *arguments)
    jax.jit(both, in_shardings=where).lower(arguments, gradient).compile()


def schedule(folder: str, kernel: str) -> str:
    (path,) = glob.glob(f"{folder}/*{kernel}*schedule-analysis_final_bundles.txt")
    with open(path) as file:
        bundles = int(re.findall(r"total scheduled bundles:\s+(\d+)", file.read())[0])
    (path,) = glob.glob(f"{folder}/*{kernel}*final_hlo-static-per-bundle-utilization.txt")
    with open(path) as file:
        lines = file.read().splitlines()
    units, slots = lines[1].split(", "), map(int, lines[2].split())
    bundle_rows = [[int(n) for n in line.split()] for line in lines[4:] if line[:1].isdigit()]
    used = [sum(column) for column in zip(*bundle_rows, strict=True)]
    busy = ", ".join(
        f"{unit.strip()} {total / n / bundles:.0%}"
        for unit, n, total in zip(units, slots, used, strict=True)
    )
    return f"{bundles} cycles ({busy})"


if __name__ == "__main__":
    main()

"""Options that the compiler receives beside the program."""

from jax.sharding import Mesh

# A threshold in MiB of activations. The compiler multiplies larger activations with each device's
# part of the weights in turn (Wang et al. 2023, "Overlap communication with dependent computation
# via decomposition"), and reads the activations again for each part. For ViT-B/16 on v5e:4x4 with
# mesh.fsdp=16 this causes 54.5 GB instead of 14.0 GB of traffic per chip and step
# (benchmarks/RESULTS.md). The value below is so large that the compiler never does it.
_TPU_GATHERS_WHOLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def compiler_options(mesh: Mesh, *, gather_whole: bool) -> dict[str, str] | None:
    """The compiler options for `jax.jit` of a program that runs on `mesh`; None if it needs none.

    Args:
      mesh: The devices.
      gather_whole: Whether weights that are split over devices are gathered in one piece before a
        product. Otherwise a TPU's compiler may multiply part by part.
    """
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return _TPU_GATHERS_WHOLE if on_tpu and gather_whole else None

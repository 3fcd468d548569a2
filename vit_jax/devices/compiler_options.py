"""What the compiler is told beyond the program."""

from jax.sharding import Mesh

# In MiB of activations: larger ones are multiplied with one device's part of the weights after the
# other (Wang et al. 2023, "Overlap communication with dependent computation via decomposition"),
# and read as often. In ViT-B/16 on v5e:4x4 with mesh.fsdp=16 that is 54.5 GB of traffic a chip and
# step for 14.0 (benchmarks/RESULTS.md).
_TPU_GATHERS_WHOLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def compiler_options(mesh: Mesh, *, gather_whole: bool) -> dict[str, str] | None:
    """Options for `jax.jit` of what runs on `mesh`, None for none.

    Args:
      gather_whole: Whether weights that are split over devices are gathered before a product,
        in one piece; on TPU the compiler may do otherwise.
    """
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return _TPU_GATHERS_WHOLE if on_tpu and gather_whole else None

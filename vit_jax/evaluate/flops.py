"""Model FLOP utilisation: what share of the devices' arithmetic goes into the model itself."""

from typing import Any

# Peak of dense bfloat16 products, in FLOP/s a chip (of TPU v4 on, one JAX device is one chip), by
# how `device_kind` starts; the longest start that fits holds. Google's TPU system architecture
# pages and NVIDIA's data sheets (SXM parts unless named otherwise, without sparsity).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # of half a chip: JAX shows two devices
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA H200 NVL": 835e12,
}

# Forward once, backward twice that: for the inputs and for the weights of every product.
_PASSES = 3


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of one device in bfloat16; None for a device that is not in `PEAKS`."""
    fits = [kind for kind in PEAKS if device_kind.lower().startswith(kind.lower())]
    return PEAKS[max(fits, key=len)] if fits else None


def train_flops(model: Any, image_size: int) -> float | None:
    """FLOPs of `model` for one training image: two for each multiply-add, in three passes.

    What is recomputed to save memory does not count (Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B). Shapes only: no arrays are made.

    Args:
      model: A linen module called as `model(images, train=False)`.
      image_size: Height and width in pixels.

    Returns:
      None for a model whose products cannot be counted beforehand.
    """
    import jax

    from vit_jax.families.sizes import count_macs

    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), "float32")
    # Initialising draws numbers and multiplies none: these are the products of the forward pass.
    trace = jax.make_jaxpr(lambda x: model.init(jax.random.key(0), x, train=False))
    try:
        return 2.0 * _PASSES * count_macs(trace(image).jaxpr)
    except ValueError:
        return None


def utilisation(
    images_per_second: float, flops_per_image: float | None, device_kind: str, devices: int
) -> float | None:
    """Share of the devices' peak, 0 to 1; None where the work or the peak is not known."""
    peak = peak_flops(device_kind)
    if peak is None or flops_per_image is None:
        return None
    return images_per_second * flops_per_image / (peak * devices)

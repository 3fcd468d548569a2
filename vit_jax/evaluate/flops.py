"""Model FLOP utilisation: what share of the devices' arithmetic goes into the model itself."""

import math
from collections.abc import Mapping
from typing import Any

from vit_jax.families.preprocess import sides

# The peak of dense bfloat16 products in FLOP/s of one JAX device, by the beginning of
# `device_kind`; the longest beginning that fits is used. Sources are Google's TPU system
# architecture pages and NVIDIA's data sheets (SXM parts unless named otherwise, without sparsity).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # Half of a chip, which JAX shows as two devices.
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA H200 NVL": 835e12,
}

# The backward pass costs two forward passes: one for the gradients with respect to the inputs of
# every product, and one for those with respect to its weights.
_PASSES = 3


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of one device in bfloat16; None for a device that is not in `PEAKS`."""
    fits = [kind for kind in PEAKS if device_kind.lower().startswith(kind.lower())]
    return PEAKS[max(fits, key=len)] if fits else None


def train_flops(
    model: Any,
    image_size: int | tuple[int, int],
    channels: int = 3,
    beside: Mapping[str, tuple[int, ...]] | None = None,
) -> float | None:
    """The FLOPs of `model` for one training image: two per multiply-add, times three passes.

    Recomputation that saves memory does not count (Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B). The function works on shapes and computes no arrays.

    Args:
      model: A linen module called as `model(images, train=False)`, and with what `beside` names.
      image_size: The side of a square, or (height, width), in pixels.
      channels: The number of channels of an image.
      beside: What the model is called with by name beside an image, whole numbers: the shape of
        each for one image.

    Returns:
      The number of FLOPs, or None for a model whose products cannot be counted beforehand.
    """
    import jax

    image = jax.ShapeDtypeStruct((1, *sides(image_size), channels), "float32")
    # Initialising parameters involves no products, so all products are of the forward pass.
    others = {k: jax.ShapeDtypeStruct((1, *shape), "int32") for k, shape in (beside or {}).items()}
    trace = jax.make_jaxpr(lambda x, y: model.init(jax.random.key(0), x, train=False, **y))
    try:
        return 2.0 * _PASSES * count_macs(trace(image, others).jaxpr)
    except ValueError:
        return None


def utilisation(
    images_per_second: float, flops_per_image: float | None, device_kind: str, devices: int
) -> float | None:
    """The share of the devices' peak, 0 to 1; None if the FLOPs or the peak are not known."""
    peak = peak_flops(device_kind)
    if peak is None or flops_per_image is None:
        return None
    return images_per_second * flops_per_image / (peak * devices)


def count_macs(jaxpr: Any) -> int:
    """The multiply-adds of all matrix products and convolutions in a jaxpr.

    For a conditional, the most expensive branch counts.

    Raises:
      ValueError: for a `while` loop that contains products, because the number of its iterations
        is not known beforehand.
    """
    return sum(_equation_macs(equation) for equation in jaxpr.eqns)


def _equation_macs(equation: Any) -> int:
    match equation.primitive.name:
        case "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            left, product = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            return math.prod(product) * math.prod(left[axis] for axis in contracting)
        case "conv_general_dilated":
            kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            features_axis = equation.params["dimension_numbers"].rhs_spec[0]
            return math.prod(result) * math.prod(kernel) // kernel[features_axis]
        case "cond":
            return max(count_macs(branch.jaxpr) for branch in equation.params["branches"])
        case "scan":
            return equation.params["length"] * count_macs(equation.params["jaxpr"].jaxpr)
        case "while":
            if inner := sum(map(count_macs, _inner_jaxprs(equation))):
                raise ValueError(f"a while loop of unknown length holds {inner} multiply-adds")
            return 0
        case _:
            return sum(map(count_macs, _inner_jaxprs(equation)))


def _inner_jaxprs(equation: Any) -> list[Any]:
    """The jaxprs that a call-like equation (jit, remat, custom_jvp, …) calls."""
    inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
    return [value for value in inner if hasattr(value, "eqns")]

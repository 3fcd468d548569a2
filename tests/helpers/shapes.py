"""Shapes of a model's parameters, by the number of its patches."""

from vit_jax.families.registry import get


def param_shapes(config: dict, *, num_classes: int, num_patches: int) -> dict[str, tuple[int, ...]]:
    """Shapes of an original model for an image of one row of patches."""
    family = get(config)
    height, width = family.stride(config)
    return family.shapes(config, num_classes, (height, width * num_patches))

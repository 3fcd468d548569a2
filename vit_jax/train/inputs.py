"""The last part of a batch's preparation, which the devices do.

Pixels and class numbers are a quarter of the bytes of normalised images, or a small part of those
of label vectors. The host therefore sends them as they are (`input_pipeline.get_datasets` with
`compact`), and the training and evaluation steps begin with what is left to do.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp

from vit_jax.input_pipeline import recipes
from vit_jax.input_pipeline.transforms import in_pixels


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Makes 'image' float32 and normalised, and 'label', if any, a vector of zeros and ones.

    Images and labels that come in this form already stay as they are. The numbers are those of the
    host's `transforms.MeanStd` and `OneHot` to the last bit, wherever a division of float32 is
    rounded as IEEE 754 says.

    Attributes:
      mean, std: Mean and standard deviation of each channel, for values in [0, 1].
      num_classes: The length of the label vector.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int

    @classmethod
    def of(cls, pp: Any, num_classes: int) -> Self:
        """What a run with `config.pp` feeds to a model of `num_classes`."""
        return cls(recipes.per_channel(pp, "mean"), recipes.per_channel(pp, "std"), num_classes)

    def __call__(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Changes 'image' [N, H, W, C] and 'label' [N] or [N, K]; other arrays stay."""
        made = dict(batch)
        if made["image"].dtype == jnp.uint8:
            made["image"] = self._normalised(made["image"])
        if "label" in made and made["label"].ndim == 1:
            made["label"] = jax.lax.optimization_barrier(
                jax.nn.one_hot(made["label"], self.num_classes, dtype=jnp.float32)
            )
        return made

    def _normalised(self, image: jax.Array) -> jax.Array:
        mean, std = (jnp.asarray(in_pixels(x))[None, None, None] for x in (self.mean, self.std))
        image = image.astype(jnp.float32)
        # The compiler would turn a division by a number that many pixels share into a product with
        # its reciprocal, which rounds otherwise. So each pixel gets a divisor of its own.
        image = (image - mean) / (std + 0.0 * image)
        # The rest of the step stays the program that it is for images that come normalised.
        return jax.lax.optimization_barrier(image)

"""Masked autoencoding: which pixels have the patches that the encoder does not see?

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377), section 3,
in the numbers of the official code (`random_masking` and `forward_loss`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.layers.masking import is_kept, kept_patches
from vit_jax.layers.precision import widened
from vit_jax.train.masked_patches import mean_of_selected, patch_pixels

KEPT = "kept"  # what batch and model call the patches that the encoder sees
_TINY = 1e-6  # added to the variance of a patch


def targets(images: jax.Array, patch: tuple[int, int], *, norm_pixels: bool) -> jax.Array:
    """What is to be predicted: images [N, H, W, C] to their patches [N, T, height · width · C].

    Pixels are in the order row, column, channel. With `norm_pixels` each patch has its mean taken
    away, and is divided by √(variance + 1e-6), whose variance is the unbiased one, Σ (x - mean)² /
    (n - 1) over the n numbers of the patch (ibid., section 3, "reconstruction target").
    """
    pixels = patch_pixels(widened(images), patch)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if not norm_pixels:
        return pixels
    variance = pixels.var(axis=-1, keepdims=True, ddof=1)
    return (pixels - pixels.mean(axis=-1, keepdims=True)) / jnp.sqrt(variance + _TINY)


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoding:
    """The objective of a run.

    Attributes:
      patch: (height, width) of a patch in pixels.
      rate: The share of the patches that are removed.
      norm_pixels: Whether the pixels of each patch are normalised, as `targets` says.
    """

    patch: tuple[int, int]
    rate: float = 0.75
    norm_pixels: bool = True

    def kept(self, image_shape: tuple[int, ...]) -> int:
        """How many patches of an image [H, W, C] the encoder sees.

        Raises:
          UserError: if that is none.
        """
        noise = jax.ShapeDtypeStruct((1, self._patches(image_shape)), jnp.float32)
        return jax.eval_shape(lambda u: kept_patches(u, self.rate), noise).shape[1]

    def draw(
        self, key: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """The batch with 'kept' [N, K], with which the model is called too.

        Every image has its own noise, one uniform number for each patch.
        """
        images = batch["image"]
        noise = jax.random.uniform(key, (len(images), self._patches(images.shape[1:])))
        return self.masked(noise, batch)

    def masked(
        self, noise: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """As `draw`, by given noise [N, T]."""
        asked = {KEPT: kept_patches(noise, self.rate)}
        return {**batch, **asked}, asked

    def loss(self, heads: Sequence[jax.Array], batch: Mapping[str, jax.Array]) -> jax.Array:
        """The loss of each image [N]: the mean over removed patches of their mean squared error.

        Args:
          heads: Predicted patches [N, T, height · width · C].
          batch: 'image', normalised, and 'kept'.
        """
        wanted = targets(batch["image"], self.patch, norm_pixels=self.norm_pixels)
        losses = jnp.square(widened(heads[0]) - wanted).mean(axis=-1)
        return mean_of_selected(losses, ~is_kept(batch[KEPT], losses.shape[1]))

    def judge(
        self, forward: Callable[..., jax.Array], batch: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Nothing is counted; the loss of each image [N].

        The same patches are removed of all images, and always the same ones, so that the loss of an
        image does not depend on its batch.

        Args:
          forward: Images and keyword arguments of the model to what it returns.
          batch: 'image'.
        """
        images = batch["image"]
        noise = jax.random.uniform(jax.random.key(0), (1, self._patches(images.shape[1:])))
        noise = jnp.broadcast_to(noise, (len(images), noise.shape[1]))
        batch, asked = self.masked(noise, batch)
        return {}, self.loss((forward(images, **asked),), batch)

    def _patches(self, image_shape: tuple[int, ...]) -> int:
        sides = zip(image_shape[:2], self.patch, strict=True)
        return math.prod(pixels // patch for pixels, patch in sides)

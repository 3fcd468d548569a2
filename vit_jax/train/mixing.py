"""Mixup and CutMix, computed on the devices as part of the training step.

Every image is mixed with the image before it in the global batch (a roll by one). The order of the
examples is random already, and the loader keeps the copies of repeated augmentation apart, so a
fixed partner is as good as a random one. The roll is chosen because it moves only one image between
neighbouring devices; reversing the batch, as timm does, would move all images.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from vit_jax.configs import common

# Labels that token labelling has beside 'label': of the image [N, K] and of its patches [N, T, K].
IMAGE_LABEL, TOKEN_LABELS = "label_image", "label_tokens"
MIX = "mix"  # The patches that MixToken exchanges, bool [rows, columns].


@dataclasses.dataclass(frozen=True)
class Mixing:
    """x → w · x + (1 - w) · partner, and the labels likewise with the mean of w.

    Mixup (Zhang et al. 2018, arXiv:1710.09412): w is one number, λ ~ Beta(α, α). CutMix (Yun et
    al. 2019, arXiv:1905.04899): w is 0 in a box and 1 outside. The box has about 1 - λ of the
    area, a centre anywhere, and is clipped at the border.

    Attributes:
      mixup_alpha: The α of Mixup; 0 turns Mixup off.
      cutmix_alpha: The α of CutMix; 0 turns CutMix off.
      probability: The probability that anything is mixed.
      switch: The probability of CutMix instead of Mixup if both are on.
      per_example: Whether every example draws its own numbers; otherwise a batch shares one draw.

    Raises:
      UserError: for a negative α, or a probability outside [0, 1].
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    per_example: bool = False

    def __post_init__(self):
        common.check({f"mixing.{name}": value for name, value in vars(self).items()})

    @property
    def on(self) -> bool:
        """Whether anything can be mixed."""
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def __call__(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Mixes 'image' [N, H, W, C] and the labels, 'label' [N, K] above all, all floating-point.

        The other arrays of the batch are returned as they are. CutMix mixes the labels of patches
        by its share, wherever its box lies, as the released code of token labelling does.
        """
        if not self.on:
            return dict(batch)
        image = batch["image"]
        pixels, share = self.weights(key, *image.shape[:3])
        labels = {x: batch[x] for x in ("label", IMAGE_LABEL, TOKEN_LABELS) if x in batch}
        return {
            **batch,
            "image": _mix(image, pixels[..., None]),
            **{name: _mix(x, _like(share, x)) for name, x in labels.items()},
        }

    def weights(
        self, key: jax.Array, n: int, height: int, width: int
    ) -> tuple[jax.Array, jax.Array]:
        """The weight w of every pixel, and its mean over the pixels of every example.

        The shapes broadcast to [n, height, width] and [n].
        """
        draws = n if self.per_example else 1
        mixup_key, cutmix_key, switch_key, on_key = jax.random.split(key, 4)
        pixels, share = jnp.ones((draws, 1, 1)), jnp.ones(draws)
        if self.mixup_alpha:
            share = jax.random.beta(mixup_key, self.mixup_alpha, self.mixup_alpha, (draws,))
            pixels = share[:, None, None]
        if self.cutmix_alpha:
            switch = self.switch if self.mixup_alpha else 1.0
            chosen = jax.random.bernoulli(switch_key, switch, (draws,))
            inside = random_box(cutmix_key, self.cutmix_alpha, draws, height, width)
            # The share is computed from the box after clipping at the border, as in the paper's
            # code, and not from the drawn λ.
            area = 1.0 - inside.sum((1, 2)) / (height * width)
            pixels = jnp.where(chosen[:, None, None], (~inside).astype(jnp.float32), pixels)
            share = jnp.where(chosen, area, share)
        mixed = jax.random.bernoulli(on_key, self.probability, (draws,))
        return jnp.where(mixed[:, None, None], pixels, 1.0), jnp.where(mixed, share, 1.0)


def random_box(key: jax.Array, alpha: float, n: int, height: int, width: int) -> jax.Array:
    """True inside `n` random boxes, [n, height, width].

    A box has ⌊√(1 - λ) side⌋ of each side, λ ~ Beta(α, α), and is clipped at the border about a
    centre that is uniform (CutMix; MixToken draws its boxes of patches in the same way).
    """
    share_key, y_key, x_key = jax.random.split(key, 3)
    side = jnp.sqrt(1.0 - jax.random.beta(share_key, alpha, alpha, (n,)))

    def interval(key: jax.Array, size: int) -> jax.Array:
        half = (side * size).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (n,), 0, size)
        low, high = jnp.clip(centre - half, 0, size), jnp.clip(centre + half, 0, size)
        at = jnp.arange(size)[None, :]
        return (low[:, None] <= at) & (at < high[:, None])

    return interval(y_key, height)[:, :, None] & interval(x_key, width)[:, None, :]


def _like(share: jax.Array, x: jax.Array) -> jax.Array:
    return share.reshape(-1, *(1,) * (x.ndim - 1))


def _mix(x: jax.Array, weight: jax.Array) -> jax.Array:
    weight = weight.astype(x.dtype)
    return weight * x + (1 - weight) * jnp.roll(x, 1, axis=0)

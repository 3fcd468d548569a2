"""Corruption and removal of patches, for models that learn to say what was there.

Corruption before the encoder: Dosovitskiy et al. 2021 (arXiv:2010.11929), appendix B.1.2. Removal:
He et al. 2022, masked autoencoders (arXiv:2111.06377), section 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax.errors import UserError
from vit_jax.layers.init import normal_02

# What happens to a patch: it is not selected; or it is selected, and becomes the mask token,
# becomes another patch, or stays as it is.
UNSELECTED, MASKED, SWAPPED, KEPT = range(4)
# Its name begins as those of heads do, because whoever fine-tunes leaves it behind with the head.
MASK_TOKEN = "head_mask_token"


class Corruption(NamedTuple):
    """What happens to each of the patches of a batch.

    Attributes:
      kind: [N, T], one of `UNSELECTED`, `MASKED`, `SWAPPED` and `KEPT`.
      donor: [N, T], the patch of the same image whose embedding a `SWAPPED` patch gets.
    """

    kind: jax.Array
    donor: jax.Array

    @property
    def selected(self) -> jax.Array:
        """Which patches the model is asked about, [N, T]; those that stay as they are, too."""
        return self.kind != UNSELECTED


def corrupt(x: jax.Array, token: jax.Array, corruption: Corruption) -> jax.Array:
    """Embedded patches [N, T, D] of which some are the mask token [D] or another patch."""
    kind = corruption.kind[..., None]
    donors = jnp.take_along_axis(x, corruption.donor[..., None], axis=1)
    x = jnp.where(kind == SWAPPED, donors, x)
    return jnp.where(kind == MASKED, token.reshape(1, 1, -1).astype(x.dtype), x)


def corrupt_tokens(
    module: nn.Module,
    x: jax.Array,
    corruption: Corruption | None,
    *,
    mask_token: bool,
    name: str = MASK_TOKEN,
) -> jax.Array:
    """`corrupt` with a mask token that the model learns; None changes nothing.

    To be called in a compact method, which adds a parameter `name` [1, 1, D] if `mask_token` says
    so.

    Raises:
      UserError: for a corruption of a model that has no mask token.
    """
    if mask_token:
        token = module.param(name, normal_02, (1, 1, x.shape[-1]))
        return x if corruption is None else corrupt(x, token, corruption)
    if corruption is not None:
        raise UserError("patches cannot be masked in a model without a mask token: mask_token=True")
    return x


def kept_patches(noise: jax.Array, rate: float) -> jax.Array:
    """The patches that stay when a share of them is removed, by noise: [N, T] to [N, K].

    Those with the least noise stay, in the order of their noise, and K = ⌊T (1 - rate)⌋ as in the
    official code (`random_masking`).

    Raises:
      UserError: for a rate that leaves no patch.
    """
    patches = noise.shape[1]
    count = int(patches * (1 - rate))
    if count < 1:
        raise UserError(
            f"a share of {rate} of {patches} patches leaves none to look at; lower the share that "
            "is removed, or take larger images or smaller patches"
        )
    return jnp.argsort(noise, axis=1)[:, :count].astype(jnp.int32)


def is_kept(kept: jax.Array, patches: int) -> jax.Array:
    """Which of so many patches are among `kept` [N, K], [N, patches]."""
    return (kept[:, :, None] == jnp.arange(patches)[None, None]).any(axis=1)


def put_back(x: jax.Array, kept: jax.Array, token: jax.Array, patches: int) -> jax.Array:
    """Tokens [N, K, D] of the patches `kept` [N, K] at their places among all, [N, patches, D].

    `token` [1, 1, D] stands for each of the others.
    """
    here = kept[:, :, None] == jnp.arange(patches)[None, None]
    places = jnp.argmax(here, axis=1)[..., None]  # of each patch among those that are kept
    found = jnp.take_along_axis(x, places, axis=1)
    return jnp.where(here.any(axis=1)[..., None], found, token.astype(x.dtype))

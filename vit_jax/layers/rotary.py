"""Rotary positions: queries and keys are turned by angles that grow with their place in the image.

Su et al. 2021, "RoFormer" (arXiv:2104.09864), equation 34, for each axis of an image by its own
part of a head. Models differ in their coordinates, in their frequencies, and in which two channels
of a head are turned together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.layers.precision import widened


class Rotary(NamedTuple):
    """Cosines and sines for the last T tokens and all d channels of a head: [T, d] or [N, T, d]."""

    cos: jax.Array
    sin: jax.Array


def axial_frequencies(head_dim: int, base: float) -> np.ndarray:
    """Radians for a step of 1 along either axis, [d / 4]: base^(-4 m / d), m = 0, 1, …

    Raises:
      UserError: for heads whose width d is no multiple of 4: two axes of two channels each.
    """
    if head_dim % 4:
        raise UserError(
            f"rotary positions turn heads of a multiple of 4 channels, two for each axis; these "
            f"have {head_dim}: take another num_heads"
        )
    return base ** -(4 * np.arange(head_dim // 4) / head_dim)


def centred(count: int) -> np.ndarray:
    """Coordinates [count] of the centres of cells along an axis that reaches from -1 to 1."""
    return 2 * (np.arange(count) + 0.5) / count - 1


def axial_angles(rows: Any, columns: Any, frequencies: np.ndarray) -> Any:
    """Angles [H * W, 2 F] of the cells of a map, row by row: those of the row, then the column.

    Args:
      rows, columns: Coordinates [H] and [W].
      frequencies: Radians for a step of 1, [F].
    """
    y, x = (axis[:, None] * frequencies[None] for axis in (rows, columns))
    shape = (len(rows), len(columns), len(frequencies))
    xp = jnp if isinstance(y, jax.Array) or isinstance(x, jax.Array) else np
    y, x = xp.broadcast_to(y[:, None], shape), xp.broadcast_to(x[None], shape)
    return xp.concatenate([y, x], axis=-1).reshape(shape[0] * shape[1], -1)


def in_halves(angles: Any) -> Rotary:
    """The table for `rotate_halves` of angles [..., T, d / 2]."""
    angles = jnp.concatenate([jnp.asarray(angles)] * 2, axis=-1)
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def in_pairs(angles: Any) -> Rotary:
    """The table for `rotate_pairs` of angles [..., T, d / 2]."""
    angles = jnp.repeat(jnp.asarray(angles), 2, axis=-1)
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def rotate_halves(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Turns channel i of a head with channel i + d / 2; `x` is [N, tokens, heads, d].

    Computed in float32 or wider; tokens before the last T stay as they are.
    """

    def turned(x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([-second, first], axis=-1)

    return _rotate(x, rotary, turned)


def rotate_pairs(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Turns channel 2 i of a head with channel 2 i + 1; else as `rotate_halves`."""

    def turned(x: jax.Array) -> jax.Array:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        return jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)

    return _rotate(x, rotary, turned)


def _rotate(x: jax.Array, rotary: Rotary, turned: Any) -> jax.Array:
    cos, sin = (t[..., None, :] if t.ndim == 3 else t[None, :, None] for t in rotary)
    before = x.shape[1] - cos.shape[1]
    y = widened(x[:, before:])
    y = (y * cos.astype(y.dtype) + turned(y) * sin.astype(y.dtype)).astype(x.dtype)
    return jnp.concatenate([x[:, :before], y], axis=1) if before else y

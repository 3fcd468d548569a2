"""Position embeddings that are computed, not learned. NumPy only."""

from typing import Any

import numpy as np

from vit_jax.errors import UserError


def sincos2d(
    grid: tuple[int, int],
    width: int,
    *,
    temperature: float = 10_000.0,
    endpoint: bool = True,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Fixed position embeddings [1, rows * columns, width] of a grid (rows, columns).

    As big_vision's `posemb="sincos2d"` (Beyer et al. 2022, arXiv:2205.01580): a quarter of the
    width each for the sine and cosine of the column, then of the row.

    Args:
      endpoint: Whether the last frequency is 1 / temperature, so that the exponents are
        m / (width / 4 - 1). Without it they are m / (width / 4), as in masked autoencoders (He et
        al. 2022, arXiv:2111.06377, official code).

    Raises:
      UserError: for a width that is no multiple of 4, or below 8.
    """
    if width % 4 or width < 8:
        raise UserError(
            f"sincos2d needs a width that is a multiple of 4, and 8 or more; got {width}"
        )
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    omega = 1.0 / temperature ** (np.arange(width // 4) / (width // 4 - endpoint))
    y, x = (positions.reshape(-1, 1) * omega for positions in (rows, columns))
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return table[None].astype(dtype)


def sinusoid(length: int, width: int, *, dtype: Any = np.float32) -> np.ndarray:
    """Fixed position embeddings [1, length, width] of a sequence, sines and cosines in turn.

    Vaswani et al. 2017 (arXiv:1706.03762), section 3.5: place 2i is the sine and place 2i + 1
    the cosine of position / 10000^(2i / width).
    """
    place = np.arange(width)
    angles = np.arange(length)[:, None] / 10_000.0 ** (2 * (place // 2) / width)
    return np.where(place % 2, np.cos(angles), np.sin(angles))[None].astype(dtype)

"""Position embeddings that are computed, not learned. NumPy only."""

from typing import Any

import numpy as np

from vit_jax.errors import UserError


def sincos2d(
    grid: tuple[int, int], width: int, *, temperature: float = 10_000.0, dtype: Any = np.float32
) -> np.ndarray:
    """Fixed position embeddings [1, rows * columns, width] of a grid (rows, columns).

    As big_vision's `posemb="sincos2d"` (Beyer et al. 2022, arXiv:2205.01580): a quarter of the
    width each for the sine and cosine of the column, then of the row.
    """
    if width % 4 or width < 8:
        raise UserError(
            f"sincos2d needs a width that is a multiple of 4, and 8 or more; got {width}"
        )
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    omega = 1.0 / temperature ** (np.arange(width // 4) / (width // 4 - 1))
    y, x = (positions.reshape(-1, 1) * omega for positions in (rows, columns))
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return table[None].astype(dtype)

"""Scores of attention for how far a key is from a query, in rows and in columns."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Size = tuple[int, int]  # height and width


def offset_tables(module: nn.Module, size: Size, width: int) -> tuple[jax.Array, jax.Array]:
    """Learned vectors of offsets, `row_offsets` [2H - 1, d] and `column_offsets` [2W - 1, d].

    To be called in a compact method. Row i is of a key that lies i + 1 - H rows below its query.

    Args:
      size: (H, W) of the map.
      width: d.
    """
    init = nn.initializers.normal(width**-0.5)
    rows, columns = (
        module.param(f"{axis}_offsets", init, (2 * cells - 1, width))
        for axis, cells in zip(("row", "column"), size, strict=True)
    )
    return rows, columns


def offset_scores(q: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Products of queries with the vectors of their keys' offsets, which all heads share.

    Srinivas et al. 2021 (arXiv:2101.11605), figure 4.

    Args:
      q: Queries of a map [N, H, W, heads, d].
      rows, columns: As `offset_tables` gives them.

    Returns:
      [N, heads, H · W, H · W].
    """
    n, height, width, heads, _ = q.shape
    by_row = jnp.einsum("nyxhd,ykd->nhyxk", q, _of_pairs(rows, height, q.dtype))[..., :, None]
    by_column = jnp.einsum("nyxhd,xkd->nhyxk", q, _of_pairs(columns, width, q.dtype))
    scores = by_row + by_column[..., None, :]
    return scores.reshape(n, heads, height * width, height * width)


def _of_pairs(table: jax.Array, size: int, dtype: jnp.dtype) -> jax.Array:
    """[queries, keys, d] along one axis of the map."""
    cells = np.arange(size)
    return table[cells[None, :] - cells[:, None] + size - 1].astype(dtype)

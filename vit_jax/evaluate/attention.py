"""What attention says of images: maps of a query, rollout, distances. NumPy alone.

Attention weights are [N, heads, Q, K]. Their tokens are P that are no patches, class tokens and
registers, and after them patches row by row; P is what the grid of patches leaves over.
"""

from collections.abc import Sequence

import numpy as np

Grid = tuple[int, int]  # rows and columns of patches


def rollout(layers: Sequence[np.ndarray]) -> np.ndarray:
    """How much of each input token is in each output token: [N, T, T], rows add up to 1.

    The product over the layers of (mean over heads + identity) / 2, the identity being the
    residual connection: Abnar and Zuidema 2020 (arXiv:2005.00928), section 3; the Vision
    Transformer's paper (arXiv:2010.11929), appendix D.7, draws it.

    Args:
      layers: Weights [N, heads, T, T], the first layer first.
    """
    product = np.eye(layers[0].shape[-1])[None]
    for weights in layers:
        mean = weights.astype(np.float64).mean(axis=1)
        product = (mean + np.eye(mean.shape[-1])) / 2 @ product
    return product


def mean_distances(weights: np.ndarray, grid: Grid, stride: tuple[int, int]) -> np.ndarray:
    """How far a head looks, in pixels: weights [N, heads, T, T] to [heads].

    The distance between the middles of the asking patch and of each other, averaged by the weights
    among patches, over queries and images (arXiv:2010.11929, figure 7 right and appendix D.7).
    """
    patches = grid[0] * grid[1]
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 2)
    places = places * np.asarray(stride, np.float64)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    among = weights[..., -patches:, -patches:].astype(np.float64)
    among = among / among.sum(axis=-1, keepdims=True)
    return (among * apart).sum(axis=-1).mean(axis=(0, 2))


def map_of(weights: np.ndarray, grid: Grid, query: str | Grid) -> np.ndarray:
    """What a query gives to each patch, against even attention: [..., Q, K] to [..., *grid].

    1 is the share that a patch gets where all tokens are looked at alike.

    Args:
      query: 'class', the first token; 'mean', the mean over all queries; or a patch (row, column).
    """
    patches = grid[0] * grid[1]
    if query == "mean":
        row = weights.mean(axis=-2)
    elif query == "class":
        row = weights[..., 0, :]
    else:
        before = weights.shape[-2] - patches
        row = weights[..., before + int(query[0]) * grid[1] + int(query[1]), :]
    return (row[..., -patches:] * weights.shape[-1]).reshape(*row.shape[:-1], *grid)


def cosines(table: np.ndarray) -> np.ndarray:
    """The cosine of each two rows: [T, D] to [T, T]."""
    table = table.astype(np.float64)
    table = table / np.linalg.norm(table, axis=-1, keepdims=True)
    return table @ table.T


def principal_filters(kernel: np.ndarray, count: int = 28) -> np.ndarray:
    """Principal components of the filters that read the pixels (arXiv:2010.11929, figure 7 left).

    A kernel [height, width, channels, D] to [count or fewer, height, width, channels], the
    component of the largest variance first, each of length 1.
    """
    filters = kernel.reshape(-1, kernel.shape[-1]).T.astype(np.float64)
    components = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False)[2]
    return components[:count].reshape(-1, *kernel.shape[:-1])

"""Position embeddings for another grid, as one small matrix an axis: exact and NumPy only.

Several implementations are in use and none equals another. 'official' is the original code's
`scipy.ndimage.zoom(order=1)`: bilinear between the corner points ("align corners"). 'timm' is
`torch.nn.functional.interpolate(mode='bicubic', antialias=True)`: half-pixel centres, Keys's
cubic with a = -0.5, widened by the scale when shrinking. 'bilinear' and 'bicubic' are PyTorch's
without antialiasing: half-pixel centres, the border repeated, and a = -0.75. 'geometric' is BEiT's
for tables of relative positions, in timm's linear form; 'geometric_spline' is the official code's,
with a cubic spline between the known distances. 'dino' is the official code of DINO and of DINOv2
without registers: 'bicubic' with a scale of (points + 0.1) / old points.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from vit_jax.errors import UserError
from vit_jax.layers.interpolation import (
    antialiased_weights,
    half_pixel_weights,
    keys_cubic,
    linear,
    normalised,
    torch_bicubic,
)

Grid = tuple[int, int]
# What a table of positions may be resized by; the other methods are of tables of distances.
METHODS = ("official", "timm", "bilinear", "bicubic", "dino")


def resize_posembed(
    posemb: np.ndarray,
    old_grid: Grid,
    new_grid: Grid,
    num_prefix: int,
    method: str = "official",
) -> np.ndarray:
    """Resizes position embeddings; the prefix (class token) is kept as it is.

    Args:
      posemb: [1, num_prefix + rows * columns, D].
      old_grid, new_grid: (rows, columns) of patches.
      num_prefix: Leading tokens that are no patches.
      method: 'official', 'timm', 'bilinear', 'bicubic', 'dino', 'geometric' or 'geometric_spline'.

    Returns:
      [1, num_prefix + new rows * new columns, D], in the dtype of `posemb`.
    """
    if method not in _WEIGHTS:
        raise UserError(f"unknown resize method {method!r}; known: {sorted(_WEIGHTS)}")
    posemb = np.asarray(posemb)
    if posemb.ndim != 3 or posemb.shape[:2] != (1, num_prefix + math.prod(old_grid)):
        raise UserError(
            f"expected position embeddings [1, {num_prefix} + {old_grid[0]} * {old_grid[1]}, D]; "
            f"got shape {posemb.shape}"
        )
    if tuple(old_grid) == tuple(new_grid):
        return posemb
    prefix, grid = posemb[:, :num_prefix], posemb[0, num_prefix:]
    rows, columns = (
        _WEIGHTS[method](old, new) for old, new in zip(old_grid, new_grid, strict=True)
    )
    grid = grid.astype(np.float64).reshape(*old_grid, -1)
    resized = np.einsum("ij,jkd,lk->ild", rows, grid, columns, optimize=True)
    resized = resized.reshape(1, math.prod(new_grid), -1).astype(posemb.dtype)
    return np.concatenate([prefix, resized], axis=1)


def interpolate_posembed(
    posemb: np.ndarray,
    num_tokens: int,
    has_class_token: bool,
    *,
    old_grid: Grid | None = None,
    new_grid: Grid | None = None,
) -> np.ndarray:
    """Position embeddings for another number of tokens, as the original's.

    Args:
      posemb: [1, tokens, D].
      num_tokens: Tokens wanted, the class token included.
      has_class_token: Whether token 0 is a class token.
      old_grid: (rows, columns) of `posemb`, where its grid is not square.
      new_grid: (rows, columns) wanted, where that grid is not square.

    Returns:
      [1, num_tokens, D]. Bilinear with aligned corners.
    """
    prefix = int(has_class_token)
    old_grid = old_grid or square(np.shape(posemb)[1] - prefix, "the file's")
    new_grid = new_grid or square(num_tokens - prefix, "the model's")
    if math.prod(new_grid) != num_tokens - prefix:
        raise UserError(f"grid {new_grid} does not hold {num_tokens - prefix} patches")
    return resize_posembed(posemb, old_grid, new_grid, prefix)


def resample_patches(kernel: np.ndarray, new: Grid) -> np.ndarray:
    """The kernel that reads patches of another size, by the pseudo-inverse of their resizing.

    Beyer et al. 2023, "FlexiViT: One Model for All Patch Sizes" (arXiv:2212.08013), section 3.4 and
    equation 4: a larger patch gives what the smaller one gave that it was resized from. Patches are
    resized as there and in timm: cubic, antialiased. Resizing parts into rows and columns, and so
    does its pseudo-inverse.

    Args:
      kernel: [rows, columns, C, D].
      new: (rows, columns) in pixels.

    Returns:
      [new rows, new columns, C, D], in the dtype of `kernel`.
    """
    rows, columns = (
        np.linalg.pinv(antialiased_weights(old, size, keys_cubic).T)
        for old, size in zip(kernel.shape[:2], new, strict=True)
    )
    found = np.einsum("ij,jkcd,lk->ilcd", rows, kernel.astype(np.float64), columns, optimize=True)
    return found.astype(kernel.dtype)


def square(num_patches: int, whose: str = "the") -> Grid:
    """The square grid of so many patches; UserError when there is none."""
    side = math.isqrt(max(num_patches, 0))
    if side * side != num_patches or not side:
        raise UserError(
            f"{whose} {num_patches} patches form no square; give the grid as (rows, columns)"
        )
    return side, side


def _align_corners(old: int, new: int) -> np.ndarray:
    """[new, old]: linear weights; the first and the last points stay where they are."""
    position = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    return normalised(position, old, linear)


Between = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _geometric(old: int, new: int, between: Between) -> np.ndarray:
    """[new, old] for odd sizes, whose middle is distance 0.

    The old table's distances are taken to grow as sums of 1, q, q², …, with q such that the last
    one is the new table's: near cells keep what was learned of them, far ones are stretched.
    Bao et al. 2022 (BEiT, arXiv:2106.08254), official code, whose bounds and precision q has.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (q ** (old // 2) - 1) / (q - 1) > new // 2 else (q, high)
    distances = np.cumsum(q ** np.arange(old // 2))
    known = np.concatenate([-distances[::-1], [0.0], distances])
    return between(known, np.arange(new) - new // 2)


def _line(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[wanted, known]: linear weights; beyond the known points it is the last of them."""
    return np.stack([np.interp(wanted, known, row) for row in np.eye(len(known))], axis=1)


def _spline(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[wanted, known]: the interpolating cubic spline, as SciPy's for a grid of points."""
    from scipy.interpolate import make_interp_spline

    if len(known) < 4:
        raise UserError(
            f"the official code puts a cubic spline through the distances of a window, which takes "
            f"4 of them along each axis; this table has {len(known)}. Take the method 'timm'"
        )
    spline = make_interp_spline(known, np.eye(len(known)), k=3)
    return spline(np.clip(wanted, known[0], known[-1]))


_WEIGHTS = {
    "official": _align_corners,
    "timm": functools.partial(antialiased_weights, kernel=keys_cubic),
    "bilinear": functools.partial(half_pixel_weights, kernel=linear),
    "bicubic": functools.partial(half_pixel_weights, kernel=torch_bicubic),
    "dino": functools.partial(half_pixel_weights, kernel=torch_bicubic, offset=0.1),
    "geometric": functools.partial(_geometric, between=_line),
    "geometric_spline": functools.partial(_geometric, between=_spline),
}

"""How the cells of windows lie to one another, in a map that was rolled. NumPy only."""

import numpy as np

Size = tuple[int, int]  # height and width
# Added to the scores of tokens that the shift made neighbours; the official code's figure.
MASKED = -100.0


def relative_position_index(window: Size) -> np.ndarray:
    """[T, T]: the row of the bias table for query i and key j, T = height · width."""
    height, width = window
    row, column = (x.reshape(-1, 1) for x in np.mgrid[:height, :width])
    down, right = row - row.T + height - 1, column - column.T + width - 1
    return down * (2 * width - 1) + right


CLASS_ROWS = 3  # of a table of biases with a class token, see `class_position_index`


def class_position_index(window: Size) -> np.ndarray:
    """[1 + T, 1 + T]: the row of the bias table for query i and key j, 0 being a class token.

    After the rows of `relative_position_index` come three: class token to others, others to class
    token, class token to itself (Bao et al. 2022, BEiT, arXiv:2106.08254, official code).
    """
    height, width = window
    distances = (2 * height - 1) * (2 * width - 1)
    index = np.pad(relative_position_index(window), ((1, 0), (1, 0)))
    index[0, :], index[:, 0], index[0, 0] = distances, distances + 1, distances + 2
    return index


def shifted_regions(size: Size, window: Size, shift: Size) -> np.ndarray:
    """[windows, T]: which cells of a rolled map were neighbours before, by equal numbers.

    As timm, where the map is not whole windows: it is padded after it was rolled, and its last
    rows are counted from the end of the padding.
    """
    padded, (height, width) = padded_size(size, window), window
    rows, columns = (_regions(*axis) for axis in zip(padded, window, shift, strict=True))
    regions = 3 * rows[:, None] + columns[None]
    regions = regions.reshape(padded[0] // height, height, padded[1] // width, width)
    return regions.swapaxes(1, 2).reshape(-1, height * width)


def padded_size(size: Size, window: Size) -> Size:
    """The smallest size, in whole windows, that holds `size`."""
    rows, columns = (-(-x // w) * w for x, w in zip(size, window, strict=True))
    return rows, columns


def _regions(length: int, window: int, shift: int) -> np.ndarray:
    cell = np.arange(length)
    return ((cell >= length - window) + 1 * (cell >= length - shift)) * bool(shift)

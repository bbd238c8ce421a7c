"""The sky's level over an image: a mesh of robust cell statistics, joined by natural cubic splines.

A cell's level is its mean after clipping at 3 sigma about the median, or the median alone where the cell is
crowded: SExtractor's rule (Bertin & Arnouts 1996, A&AS 117, 393) without its extrapolation to the mode, which
lies a part of an electron below the mean of Poisson noise. Sources are to be masked; what cannot be seen of
them belongs to the level.
"""

from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import distance_transform_edt, median_filter

from schemas.errors import BadData
from schemas.image import Image, MaskPlane

_BINS = 512
_HALF_RANGE = 5.0
_SAMPLE = 512
_LEAST_GOOD = 0.1


def mesh(
    image: Image, mask: MaskPlane, excluded: int, cell: int, row_step: int = 2, *, believe_all: bool = False
) -> tuple[Image, Image]:
    """Level and standard deviation of the sky in cells of about `cell` pixels: two float32 (rows, columns).

    `image` (ny, nx) in any unit; pixels with a bit of `excluded` in `mask` do not count, and only every
    `row_step`-th row does: with 2, a 256-pixel cell's level has an error of under a hundredth of the noise. A cell that
    stands out of its neighbours takes their level, unless `believe_all`.
    Raises BadData when no cell has a tenth of its pixels left.
    """
    rows, columns = (max(1, round(n / cell)) for n in image.shape)
    y_edges, x_edges = _edges(image.shape[0], rows), _edges(image.shape[1], columns)
    level, sigma = _cell_statistics(image, mask, excluded, y_edges, x_edges, row_step)
    if not np.isfinite(level).any():
        raise BadData(f"no sky: under {_LEAST_GOOD:.0%} of the pixels are usable in every {cell}-pixel cell")
    level, sigma = _filled(level), _filled(sigma)
    return level if believe_all else _without_outliers(level, sigma), sigma


def subtract(image: Image, level: Image) -> Image:
    """`image` (ny, nx) less the surface through the mesh `level`; a new array."""
    surface = render(level, image.shape)
    return np.subtract(image, surface, out=surface)


def render(level: Image, shape: tuple[int, ...]) -> Image:
    """The smooth surface through a mesh of cell levels, at every pixel of an image of `shape` (ny, nx)."""
    by_row, by_column = _weights(shape[0], level.shape[0]), _weights(shape[1], level.shape[1])
    surface: Image = by_row @ (level.astype(np.float32) @ by_column.T)
    return surface


def at(level: Image, shape: tuple[int, ...], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The surface through a mesh at pixels (x, y), each (n,), of an image of `shape` (ny, nx)."""
    by_row = _weights(shape[0], level.shape[0])[np.clip(np.rint(y), 0, shape[0] - 1).astype(int)]
    by_column = _weights(shape[1], level.shape[1])[np.clip(np.rint(x), 0, shape[1] - 1).astype(int)]
    result: NDArray[np.float64] = np.einsum("ni,ij,nj->n", by_row, level, by_column).astype(np.float64)
    return result


def _edges(n: int, cells: int) -> NDArray[np.int64]:
    return np.linspace(0, n, cells + 1).round().astype(np.int64)


@lru_cache(maxsize=16)
def _weights(n: int, cells: int) -> Image:
    """(n, cells): each cell's weight at each pixel; beyond the outer centres, straight lines."""
    if cells == 1:
        return np.ones((n, 1), np.float32)
    edges = _edges(n, cells)
    centres = (edges[1:] + edges[:-1] - 1) / 2.0
    if cells < 4:
        spline = make_interp_spline(centres, np.eye(cells), k=1)
    else:
        spline = make_interp_spline(centres, np.eye(cells), k=3, bc_type="natural")
    pixels = np.arange(n, dtype=np.float64)
    inside = np.clip(pixels, centres[0], centres[-1])
    weights = spline(inside) + spline.derivative()(inside) * (pixels - inside)[:, None]
    result: Image = weights.astype(np.float32)
    result.setflags(write=False)
    return result


def _filled(values: Image) -> Image:
    """Cells without a value take that of the nearest one with."""
    missing = ~np.isfinite(values)
    if not missing.any():
        return values
    nearest = distance_transform_edt(missing, return_distances=False, return_indices=True)
    result: Image = values[tuple(nearest)]
    return result


def _without_outliers(level: Image, sigma: Image) -> Image:
    """A cell that stands out of its neighbours (a giant star, a galaxy) takes their median.

    By over half its own noise: at a corner, a slope of the sky alone stands out a little.
    """
    around = median_filter(level, size=3, mode="nearest")
    deviation = np.abs(level - around)
    apart = deviation > np.maximum(0.5 * sigma, 5.0 * 1.4826 * np.median(deviation))
    result: Image = np.where(apart, around, level).astype(np.float32)
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cell_statistics(
    image: Image,
    mask: MaskPlane,
    excluded: int,
    y_edges: NDArray[np.int64],
    x_edges: NDArray[np.int64],
    row_step: int,
) -> tuple[Image, Image]:
    rows, columns = y_edges.size - 1, x_edges.size - 1
    level = np.full((rows, columns), np.nan, np.float32)
    sigma = np.full((rows, columns), np.nan, np.float32)
    histogram = np.zeros(_BINS, np.int64)
    for j in range(rows):
        for i in range(columns):
            y0, y1, x0, x1 = y_edges[j], y_edges[j + 1], x_edges[i], x_edges[i + 1]
            guess, scale = _sample(image, mask, excluded, y0, y1, x0, x1)
            if not scale > 0.0:
                continue
            low, step = guess - _HALF_RANGE * scale, 2.0 * _HALF_RANGE * scale / _BINS
            total = _fill_histogram(image, mask, excluded, y0, y1, x0, x1, row_step, low, step, histogram)
            if total * row_step < _LEAST_GOOD * (y1 - y0) * (x1 - x0):
                continue
            centre, spread = _centre(histogram)
            level[j, i], sigma[j, i] = low + step * centre, step * spread
    return level, sigma


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sample(image: Image, mask: MaskPlane, excluded: int, y0: int, y1: int, x0: int, x1: int) -> tuple[float, float]:
    """Median and the half-width below it, of a strided sample; no scale (0) where hardly a pixel is good."""
    stride = max(1, ((y1 - y0) * (x1 - x0)) // _SAMPLE)
    values = np.empty(2 * _SAMPLE, np.float32)
    n = 0
    # An odd step, prime to most widths, keeps the sample off single columns.
    for k in range(0, (y1 - y0) * (x1 - x0), stride | 1):
        y, x = y0 + k // (x1 - x0), x0 + k % (x1 - x0)
        if mask[y, x] & excluded == 0 and n < values.size:
            values[n] = image[y, x]
            n += 1
    if n < 8:
        return 0.0, 0.0
    ordered = np.sort(values[:n])
    middle = float(ordered[n // 2])
    return middle, max(middle - float(ordered[int(0.16 * n)]), 1e-6 * abs(middle) + 1e-12)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill_histogram(
    image: Image,
    mask: MaskPlane,
    excluded: int,
    y0: int,
    y1: int,
    x0: int,
    x1: int,
    row_step: int,
    low: float,
    step: float,
    histogram: NDArray[np.int64],
) -> int:
    histogram[:] = 0
    offset, per_bin = np.float32(low), np.float32(1.0 / step)
    total, bits = 0, np.uint16(excluded)
    for y in range(y0, y1, row_step):
        for x in range(x0, x1):
            position = (image[y, x] - offset) * per_bin
            if mask[y, x] & bits == 0 and position >= 0.0 and position < _BINS:
                histogram[int(position)] += 1
                total += 1
    return total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _centre(histogram: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard deviation in bins, clipped at 3 sigma about the median until it stands still."""
    first, last = 0, histogram.size
    median, sigma = 0.0, 0.0
    for _ in range(5):
        median = _quantile(histogram, first, last, 0.5)
        sigma = median - _quantile(histogram, first, last, 0.1587)
        first, last = max(0, int(median - 3.0 * sigma)), min(histogram.size, int(median + 3.0 * sigma) + 1)
    count, total = 0, 0.0
    for k in range(first, last):
        count += histogram[k]
        total += histogram[k] * (k + 0.5)
    mean = total / count
    if abs(mean - median) > 0.3 * sigma:
        return median, sigma
    return mean, sigma


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _quantile(histogram: NDArray[np.int64], first: int, last: int, fraction: float) -> float:
    total = 0
    for k in range(first, last):
        total += histogram[k]
    target, below = fraction * total, 0
    for k in range(first, last):
        if below + histogram[k] >= target and histogram[k] > 0:
            return float(k + (target - below) / histogram[k])
        below += histogram[k]
    return float(last)

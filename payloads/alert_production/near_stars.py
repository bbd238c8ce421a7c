"""How much of a score near bright stars is what subtraction leaves of them, learnt from all stars as bright."""

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.imaging import mask_ops, stars
from schemas.image import Image, Mask, MaskPlane

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_BRIGHT = 10.0
"""Peaks of the light, in the noise of a pixel, from which a star's surroundings are looked at."""
_REACH, _NEAREST, _FARTHEST = 6.0, 10, 30
"""How far is looked: sigmas of the PSF, and pixels at the least and at the most."""
_CLASSES, _FEWEST = 8, 100
"""Classes of brightness, each twice as bright as the one before, and the fewest stars, or
pixels of a ring about one star, that tell."""
_BINS, _PER_UNIT = 400, 20.0
_QUANTILE, _NORMAL = 0.5, 0.6745
_HARMLESS, _HARMLESS_ALONE = 1.1, 1.3
"""Widths below this are left: of many stars, and of one alone, which tells them less well."""
_SATURATED, _HALO_RINGS, _HALO_STEP = 200, 40, 3
"""Stars whose halos are looked at, one by one; and rings, of so many pixels."""


def temper(score: Image, light: Image, variance: Image, mask: MaskPlane, sigma: float) -> None:
    """Divide a score (ny, nx), in place, near stars by how much wider than 1 it is near stars of their brightness.

    `light`: what was subtracted, `variance` and `mask` the difference's, all (ny, nx); `sigma`: of the PSF, pixels. By
    rings of a pixel about the stars, up to 6 sigma: errors of kernel, interpolation and registration alike. The width
    is the median of sizes, of 100 stars or more: those that vary or are gone do not rule it. About each saturated star
    it is that of its own rings of 3 pixels, up to 120: its halo is of another shape in another seeing. Near several
    stars the largest width counts.
    """
    width = np.ones_like(score)
    _near_stars(score, light, variance, sigma, width)
    _in_halos(score, mask, width)
    np.divide(score, width, out=score)


def _near_stars(score: Image, light: Image, variance: Image, sigma: float, width: Image) -> None:
    found = stars.find(light, variance, _BRIGHT)
    x, y = found["x"].astype(np.int64), found["y"].astype(np.int64)
    peak = found["peak"] / np.sqrt(variance[y, x])
    classes = np.minimum(np.log2(peak / _BRIGHT), _CLASSES - 1).astype(np.int64)
    rings = _rings(int(np.clip(_REACH * sigma, _NEAREST, _FARTHEST)) + 1, 1)
    counts = np.zeros((_CLASSES, int(rings.max()) + 1, _BINS), np.int64)
    _count(score, x, y, classes, rings, counts)
    _widen(width, x, y, classes, rings, _widths(counts, np.bincount(classes, minlength=_CLASSES)))


def _in_halos(score: Image, mask: MaskPlane, width: Image) -> None:
    burnt = mask_ops.footprints(mask, Mask.SAT | Mask.SAT_TEMPLATE)
    largest = np.argsort(-burnt.area)[:_SATURATED]
    x, y = (np.rint(axis[largest]).astype(np.int64) for axis in (burnt.x, burnt.y))
    rings, each = _rings(_HALO_RINGS + 1, _HALO_STEP), np.arange(len(largest))
    counts = np.zeros((len(largest), _HALO_RINGS + 1, _BINS), np.int64)
    _count(score, x, y, each, rings, counts)
    own, told = _width(counts), counts.sum(axis=-1) >= _FEWEST
    _widen(width, x, y, each, rings, np.where(told & (own > _HARMLESS_ALONE), own, 1.0))


def _rings(number: int, step: int) -> Indices:
    """(k, k): which ring of `step` pixels about the middle one each pixel is in; -1 beyond so many."""
    offset = np.arange(-(number - 1) * step, (number - 1) * step + 1)
    ring = np.floor(np.hypot(offset[:, None], offset) / step + 0.5).astype(np.int64)
    return np.where(ring < number, ring, -1)


def _widths(counts: Indices, number: Indices) -> Floats:
    """(classes, rings): the width of the sizes counted (classes, rings, bins), at least 1.

    From the brightest class downwards as many are taken together as hold enough stars.
    """
    result = np.ones(counts.shape[:2])
    last = len(counts)
    for k in range(len(counts) - 1, -1, -1):
        if number[k:last].sum() >= _FEWEST:
            width = _width(counts[k:last].sum(axis=0))
            result[k:last] = np.where(width > _HARMLESS, width, 1.0)
            last = k
    return result


def _width(counts: Indices) -> Floats:
    """(...): robust widths of the sizes counted (..., bins); of none, a bin's."""
    total = counts.sum(axis=-1, keepdims=True)
    part = np.cumsum(counts, axis=-1) / np.maximum(total, 1)
    bins = np.where(total[..., 0] > 0, (part < _QUANTILE).sum(axis=-1), 0)
    width: Floats = (bins + 0.5) / _PER_UNIT / _NORMAL
    return width


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _count(score: Image, xs: Indices, ys: Indices, classes: Indices, rings: Indices, counts: Indices) -> None:
    """Sizes of the score about each star, by class, ring and bin; what has no score, or none that is a number, not."""
    ny, nx = score.shape
    half = rings.shape[0] // 2
    for k in range(xs.size):
        for y in range(max(ys[k] - half, 0), min(ys[k] + half + 1, ny)):
            for x in range(max(xs[k] - half, 0), min(xs[k] + half + 1, nx)):
                ring, size = rings[y - ys[k] + half, x - xs[k] + half], abs(score[y, x])
                if ring >= 0 and size > 0.0:
                    counts[classes[k], ring, int(min(size * _PER_UNIT, _BINS - 1.0))] += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _widen(width: Image, xs: Indices, ys: Indices, classes: Indices, rings: Indices, widths: Floats) -> None:
    """Bring the width up to each star's, by class and ring."""
    ny, nx = width.shape
    half = rings.shape[0] // 2
    for k in range(xs.size):
        if widths[classes[k]].max() <= 1.0:
            continue
        for y in range(max(ys[k] - half, 0), min(ys[k] + half + 1, ny)):
            for x in range(max(xs[k] - half, 0), min(xs[k] + half + 1, nx)):
                ring = rings[y - ys[k] + half, x - xs[k] + half]
                if ring >= 0:
                    width[y, x] = max(width[y, x], np.float32(widths[classes[k], ring]))

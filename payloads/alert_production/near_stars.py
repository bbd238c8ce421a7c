"""How much of a score near bright stars is what subtraction leaves of them, learnt from all stars as bright."""

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.imaging import stars
from schemas.image import Image

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_BRIGHT = 10.0
"""Peaks of the light, in the noise of a pixel, from which a star's surroundings are looked at."""
_REACH, _NEAREST, _FARTHEST = 6.0, 10, 30
"""How far is looked: sigmas of the PSF, and pixels at the least and at the most."""
_CLASSES, _FEWEST = 8, 100
"""Classes of brightness, each twice as bright as the one before, and the fewest stars that tell."""
_BINS, _PER_UNIT = 400, 20.0
_QUANTILE, _NORMAL = 0.7, 1.0364
_HARMLESS = 1.1


def temper(score: Image, light: Image, variance: Image, sigma: float) -> None:
    """Divide a score (ny, nx), in place, near stars by how much wider than 1 it is near stars of their brightness.

    `light`: what was subtracted, `variance` the difference's, both (ny, nx); `sigma`: of the PSF, pixels. By rings of a
    pixel about the stars, up to 6 sigma: errors of kernel, interpolation and registration alike. The width is the 70 %
    of sizes, of 100 stars or more: those that vary or are gone do not rule it.
    """
    found = stars.find(light, variance, _BRIGHT)
    x, y = found["x"].astype(np.int64), found["y"].astype(np.int64)
    peak = found["peak"] / np.sqrt(variance[y, x])
    classes = np.minimum(np.log2(peak / _BRIGHT), _CLASSES - 1).astype(np.int64)
    radius = int(np.clip(_REACH * sigma, _NEAREST, _FARTHEST))
    counts = np.zeros((_CLASSES, radius + 1, _BINS), np.int64)
    _count(score, x, y, classes, counts)
    number = np.bincount(classes, minlength=_CLASSES)
    _divide(score, x, y, classes, _widths(counts, number))


def _widths(counts: Indices, number: Indices) -> Floats:
    """(classes, rings): the width of the sizes counted (classes, rings, bins), at least 1.

    From the brightest class downwards as many are taken together as hold enough stars.
    """
    result = np.ones(counts.shape[:2])
    last = len(counts)
    for k in range(len(counts) - 1, -1, -1):
        if number[k:last].sum() >= _FEWEST:
            sizes = counts[k:last].sum(axis=0)
            part = np.cumsum(sizes, axis=1) / np.maximum(sizes.sum(axis=1, keepdims=True), 1)
            width = ((part < _QUANTILE).sum(axis=1) + 0.5) / _PER_UNIT / _NORMAL
            result[k:last] = np.where(width > _HARMLESS, width, 1.0)
            last = k
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _count(score: Image, xs: Indices, ys: Indices, classes: Indices, counts: Indices) -> None:
    """Sizes of the score about each star, by class, ring and bin."""
    ny, nx = score.shape
    radius = counts.shape[1] - 1
    for k in range(xs.size):
        for y in range(max(ys[k] - radius, 0), min(ys[k] + radius + 1, ny)):
            for x in range(max(xs[k] - radius, 0), min(xs[k] + radius + 1, nx)):
                ring = int(np.hypot(x - xs[k], y - ys[k]) + 0.5)
                if ring <= radius and score[y, x] != 0.0:
                    counts[classes[k], ring, min(int(abs(score[y, x]) * _PER_UNIT), _BINS - 1)] += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _divide(score: Image, xs: Indices, ys: Indices, classes: Indices, widths: Floats) -> None:
    ny, nx = score.shape
    radius = widths.shape[1] - 1
    for k in range(xs.size):
        for y in range(max(ys[k] - radius, 0), min(ys[k] + radius + 1, ny)):
            for x in range(max(xs[k] - radius, 0), min(xs[k] + radius + 1, nx)):
                ring = int(np.hypot(x - xs[k], y - ys[k]) + 0.5)
                if ring <= radius:
                    score[y, x] /= np.float32(widths[classes[k], ring])

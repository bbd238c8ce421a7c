"""Bright sources of an image: where they peak, how wide they are, how far their light reaches."""

from enum import IntFlag

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import Image, MaskPlane
from schemas.tables import Table

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FWHM_OF_SIGMA = 2.354820045


class StarFlag(IntFlag):
    """What speaks against a star, or was done with it."""

    MASKED = 1 << 0
    """A bad, saturated, struck or interpolated pixel within its core, or an edge."""
    CROWDED = 1 << 1
    """A neighbour disturbs it."""
    NOT_STELLAR = 1 << 2
    """Off the stars' sizes, or badly fitted by the PSF."""
    UNMEASURED = 1 << 3
    """Its centre or its fit did not converge; flux and position are not to be used."""
    PSF_USED = 1 << 4
    """One of the stars that the PSF was made of."""


STAR_DTYPE = np.dtype(
    [
        *((name, "f8") for name in ("x", "y")),
        *((name, "f4") for name in ("position_err", "flux", "flux_err", "peak", "fwhm", "chi2")),
        ("flags", "u2"),
    ]
)
"""A measured source: position and its error per axis (pixels), flux in a PSF and its error, brightest pixel
(unit of the image), FWHM of the Gaussian that matches it (pixels), reduced chi2 of the PSF's fit, `StarFlag`
bits."""

_RADIUS = 2
_MARGIN = 6


def find(image: Image, variance: Image, threshold: float) -> Table:
    """Peaks over `threshold` sigma of their own pixel, brightest first; `x`, `y`, `peak` filled.

    A peak is the highest of its 5 x 5 pixels. `image`, less its sky, and `variance`: float32 (ny, nx).
    """
    capacity = 1 << 15
    while True:
        pixels = np.empty((capacity, 2), np.int32)
        count = _peaks(image, variance, threshold, pixels)
        if count <= capacity:
            break
        capacity = count
    stars = np.zeros(count, STAR_DTYPE)
    stars["y"], stars["x"] = pixels[:count].T
    stars["peak"] = image[pixels[:count, 0], pixels[:count, 1]]
    order = np.argsort(stars["peak"], kind="stable")[::-1]
    result: Table = stars[order]
    return result


def size_up(image: Image, mask: MaskPlane, spoilt: int, stars: Table) -> None:
    """Centre each star and measure its width, in place: `x`, `y`, `fwhm`, `flags`.

    The weight is a circular Gaussian matched to the star, iterated (after Bernstein & Jarvis 2002, AJ 123,
    583); `spoilt`: mask bits that a star's central 5 x 5 pixels must be free of.
    """
    x, y, fwhm = stars["x"].copy(), stars["y"].copy(), np.zeros(len(stars))
    flags = np.zeros(len(stars), np.uint16)
    _match_gaussians(image, mask, spoilt, x, y, fwhm, flags)
    stars["x"], stars["y"], stars["fwhm"] = x, y, fwhm
    stars["flags"] |= flags


def reach(image: Image, x: Floats, y: Floats, level: Floats, longest: float) -> Floats:
    """Radius (pixels) at which the median of the image on a circle about each star falls below its `level`.

    Circles grow by an eighth; none is longer than `longest`.
    """
    return _reach(image, x.astype(np.float64), y.astype(np.float64), level.astype(np.float64), longest)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _peaks(image: Image, variance: Image, threshold: float, pixels: NDArray[np.int32]) -> int:
    ny, nx = image.shape
    count, square = 0, np.float32(threshold * threshold)
    for y in range(_RADIUS, ny - _RADIUS):
        for x in range(_RADIUS, nx - _RADIUS):
            v = image[y, x]
            if v * abs(v) > square * variance[y, x] and _highest(image, y, x):
                if count < pixels.shape[0]:
                    pixels[count, 0], pixels[count, 1] = y, x
                count += 1
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _highest(image: Image, y: int, x: int) -> bool:
    v = image[y, x]
    for dy in range(-_RADIUS, _RADIUS + 1):
        for dx in range(-_RADIUS, _RADIUS + 1):
            other = image[y + dy, x + dx]
            # Of equal pixels (a clipped core) the first one is the peak.
            if other > v or (other == v and (dy < 0 or (dy == 0 and dx < 0))):
                return False
    return True


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _spoilt(mask: MaskPlane, y: int, x: int, bits: int) -> bool:
    ny, nx = mask.shape
    if y < _MARGIN or x < _MARGIN or y >= ny - _MARGIN or x >= nx - _MARGIN:
        return True
    for dy in range(-_RADIUS, _RADIUS + 1):
        for dx in range(-_RADIUS, _RADIUS + 1):
            if mask[y + dy, x + dx] & bits:
                return True
    return False


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _match_gaussians(
    image: Image,
    mask: MaskPlane,
    spoilt: int,
    xs: Floats,
    ys: Floats,
    fwhm: Floats,
    flags: NDArray[np.uint16],
) -> None:
    for k in range(xs.size):
        x0, y0 = xs[k], ys[k]
        if _spoilt(mask, int(y0), int(x0), spoilt):
            flags[k] |= np.uint16(_MASKED)
        x, y, sigma = x0, y0, 2.0
        for _ in range(12):
            dx, dy, width = _moments(image, x, y, sigma)
            x, y = x + dx, y + dy
            moved = abs(dx) + abs(dy) + abs(width - sigma)
            sigma = min(max(width, 0.5), 6.0)
            if not moved > 0.01 or not (abs(x - x0) < 2.0 and abs(y - y0) < 2.0):
                break
        if abs(x - x0) < 2.0 and abs(y - y0) < 2.0:
            xs[k], ys[k], fwhm[k] = x, y, sigma * _FWHM
        else:
            flags[k] |= np.uint16(_UNMEASURED)


_MASKED, _UNMEASURED, _FWHM = int(StarFlag.MASKED), int(StarFlag.UNMEASURED), FWHM_OF_SIGMA


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _moments(image: Image, x: float, y: float, sigma: float) -> tuple[float, float, float]:
    """The step to the weighted centroid, doubled (a Gaussian's is then reached), and the matching sigma."""
    ny, nx = image.shape
    half = int(3.0 * sigma) + 1
    ix, iy = round(x), round(y)
    x_first, x_last = max(ix - half, 0), min(ix + half, nx - 1)
    total, sum_x, sum_y, sum_r = 0.0, 0.0, 0.0, 0.0
    scale = -0.5 / (sigma * sigma)
    by_column = np.empty(2 * half + 1)
    for j in range(x_first, x_last + 1):
        by_column[j - x_first] = np.exp(scale * (j - x) ** 2)
    for i in range(max(iy - half, 0), min(iy + half, ny - 1) + 1):
        dy = i - y
        row, row_x, row_r = 0.0, 0.0, 0.0
        for j in range(x_first, x_last + 1):
            dx, v = j - x, by_column[j - x_first] * image[i, j]
            row += v
            row_x += v * dx
            row_r += v * (dx * dx + dy * dy)
        w = np.exp(scale * dy * dy)
        total, sum_r = total + w * row, sum_r + w * row_r
        sum_x, sum_y = sum_x + w * row_x, sum_y + w * row * dy
    if not total > 0.0:
        return np.inf, np.inf, sigma
    # A Gaussian of width s under a weight of the same width has a second moment of s**2 / 2 per axis.
    return 2.0 * sum_x / total, 2.0 * sum_y / total, np.sqrt(max(sum_r / total, 0.0))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _reach(image: Image, xs: Floats, ys: Floats, level: Floats, longest: float) -> Floats:
    ny, nx = image.shape
    radius = np.empty(xs.size)
    values = np.empty(64, np.float32)
    for k in range(xs.size):
        r = 4.0
        while r < longest:
            n = 0
            for step in range(values.size):
                angle = 2.0 * np.pi * (step + 0.5) / values.size
                x, y = round(xs[k] + r * np.cos(angle)), round(ys[k] + r * np.sin(angle))
                if x >= 0 and y >= 0 and x < nx and y < ny and np.isfinite(image[y, x]):
                    values[n] = image[y, x]
                    n += 1
            # A quarter of the circle on the image is enough to judge by.
            if n >= values.size // 4 and np.median(values[:n]) < level[k]:
                break
            r *= 1.125
        radius[k] = min(r, longest)
    return radius

"""Stars and discs as sums of Gaussians, seen through a PSF that is one too (Hogg & Lang 2013, PASP 125, 719).

A galaxy is an ellipse, that of half of its light, kept as the lower triangular root of its moments: a, c, b with
xx = a**2, xy = a c, yy = b**2 + c**2 (pixels**2), so that every step of a fit is an ellipse and a point has 0, 0, 0.
What a PSF's own pixels have over its Gaussians is added, so that a point is drawn exactly as the PSF is; on a galaxy
it is smeared out as the galaxy is wide.
"""

from functools import cache

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from payloads.imaging.photometry import shifted
from payloads.imaging.psf_field import kernel_sigma
from schemas.image import Image

Floats = NDArray[np.float64]

_PSF_WIDTHS = np.array([0.6, 0.95, 1.5, 2.5, 5.0, 11.0])
"""Sigmas of a PSF's Gaussians, in those of the Gaussian with its noise area."""
_SCALE = 1.67834699
"""Of the profile whose half-light radius is 1: exp(-k r)."""
_DISC_WIDTHS, _END = np.array([0.25, 0.55, 0.98, 1.65]), 4.5
"""Sigmas of a disc's Gaussians, and how far out they are fitted, in half-light radii."""
_SIGMAS = 5.5
"""As far as Gaussians are drawn: what is beyond is 3e-7 of each."""
_CORE = 0.4
"""Of a galaxy's half-light radius: sigma of the Gaussian as which it smears what a PSF has over its Gaussians."""


@cache
def disc_profile() -> Floats:
    """(n, 2): weights, of sum 1, and variances (half-light radii squared) of an exponential disc's Gaussians."""
    radius = np.geomspace(1e-3, _END, 2000)
    ring = radius * np.sqrt(radius)
    basis = np.exp(-0.5 * (radius[:, None] / _DISC_WIDTHS) ** 2) / (2.0 * np.pi * _DISC_WIDTHS**2)
    light = np.exp(-_SCALE * radius)
    weight, _ = nnls(basis * ring[:, None], light * ring)
    return np.column_stack([weight / weight.sum(), _DISC_WIDTHS**2])


def psf_mixture(kernel: Image) -> Floats:
    """(n, 4): weight, xx, xy, yy (pixels**2) of the concentric Gaussians nearest to a PSF (k, k); weights of sum ~1."""
    half = kernel.shape[0] // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    sigma = kernel_sigma(kernel)
    shape = _second_moments(kernel.astype(np.float64), u, v, sigma)
    moments = (_PSF_WIDTHS[:, None] * sigma) ** 2 * shape
    xx, xy, yy = moments.T[:, :, None]
    det = xx * yy - xy**2
    exponent = (yy * u.ravel() ** 2 - 2.0 * xy * (u * v).ravel() + xx * v.ravel() ** 2) / det
    basis = np.exp(-0.5 * exponent) / (2.0 * np.pi * np.sqrt(det))
    count = 1.0 + (u**2 + v**2).ravel() / sigma**2  # wings are seen beyond the pixels, too
    weight, _ = nnls(basis.T * count[:, None], kernel.ravel() * count)
    used = weight > 0.0
    return np.column_stack([weight[used], moments[used]])


def _second_moments(kernel: Floats, u: Floats, v: Floats, sigma: float) -> Floats:
    """xx, xy, yy of a PSF's core under a Gaussian of twice its variance, for a determinant of 1."""
    light = kernel * np.exp(-(u**2 + v**2) / (4.0 * sigma**2))
    xx, xy, yy = (float(np.sum(light * term) / light.sum()) for term in (u * u, u * v, v * v))
    # Under a weight, 1 / measured = 1 / true + 1 / weight.
    inverse = np.linalg.inv(np.array([[xx, xy], [xy, yy]])) - np.eye(2) / (2.0 * sigma**2)
    true = np.linalg.inv(inverse)
    moments: Floats = np.array([true[0, 0], true[0, 1], true[1, 1]]) / np.sqrt(np.linalg.det(true))
    return moments


@numba.njit(cache=True, nogil=True, error_model="numpy")
def add_profile(out: Floats, x: float, y: float, root: Floats, profile: Floats, psf: Floats, flux: float) -> None:
    """Add to `out` a profile of ellipse `root` (a, c, b) seen through a PSF's Gaussians, about pixel (x, y) of it."""
    gxx, gxy, gyy = root[0] * root[0], root[0] * root[1], root[1] * root[1] + root[2] * root[2]
    for i in range(profile.shape[0]):
        part, size = profile[i]
        for j in range(psf.shape[0]):
            weight, xx, xy, yy = psf[j]
            if weight > 0.0:
                _add_gaussian(out, x, y, flux * part * weight, xx + size * gxx, xy + size * gxy, yy + size * gyy)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def add_excess(out: Floats, x: float, y: float, excess: Image, table: Image, flux: float) -> None:
    """Add `flux` times what a PSF has over its Gaussians, `excess` (k, k), about pixel (x, y)."""
    k = excess.shape[0]
    moved = np.empty((k, k))
    ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
    shifted(excess, x - ix, y - iy, table, moved)
    for r in range(k):
        j = iy - k // 2 + r
        if 0 <= j < out.shape[0]:
            for c in range(k):
                i = ix - k // 2 + c
                if 0 <= i < out.shape[1]:
                    out[j, i] += flux * moved[r, c]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def smearing(root: Floats, sigma: float) -> float:
    """The part of a PSF's excess that is left of it where a galaxy of ellipse `root` is seen: 1 for a point."""
    core, square = _CORE * _CORE, sigma * sigma
    xx, xy, yy = root[0] * root[0], root[0] * root[1], root[1] * root[1] + root[2] * root[2]
    wide: float = (square + core * xx) * (square + core * yy) - (core * xy) ** 2
    part: float = square / wide**0.5
    return part


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_gaussian(out: Floats, x: float, y: float, flux: float, xx: float, xy: float, yy: float) -> None:
    """Along each row a recurrence, from where the row is brightest: g(i+1) = g(i) s(i), s(i+1) = s(i) q."""
    ny, nx = out.shape
    det = xx * yy - xy * xy
    ixx, ixy, iyy = yy / det, -xy / det, xx / det
    height, q = flux / (2.0 * np.pi * np.sqrt(det)), np.exp(-ixx)
    reach = _SIGMAS * np.sqrt(yy)
    for r in range(max(int(np.ceil(y - reach)), 0), min(int(np.floor(y + reach)) + 1, ny)):
        dy = r - y
        middle, half = x - ixy / ixx * dy, np.sqrt((_SIGMAS * _SIGMAS - dy * dy / yy) / ixx)
        first, last = max(int(np.ceil(middle - half)), 0), min(int(np.floor(middle + half)), nx - 1)
        start = min(max(int(np.floor(middle + 0.5)), first), last)
        if first > last:
            continue
        dx = start - x
        top = height * np.exp(-0.5 * (ixx * dx * dx + 2.0 * ixy * dx * dy + iyy * dy * dy))
        g, step = top, np.exp(-ixx * (dx + 0.5) - ixy * dy)
        for c in range(start, last + 1):
            out[r, c] += g
            g *= step
            step *= q
        g, step = top, np.exp(ixx * (dx - 0.5) + ixy * dy)
        for c in range(start - 1, first - 1, -1):
            g *= step
            step *= q
            out[r, c] += g

"""Sources onto pixels: each a sum of Gaussians, drawn as far out as it can be seen.

A Gaussian on a grid is a recurrence, two multiplications a pixel: g(x+1) = g(x) r(x), r(x+1) = r(x) q. The
PSF is evaluated at every source, so it varies smoothly over the image.

Photometry: a source's flux is what its core and its galaxy's profile hold; what is cut off is below 1e-3 of
it. The halo (`psf.HALO_FLUX`) comes on top, where it is brighter than `faintest`.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import Image
from simulators.camera.psf import (
    HALO_FLUX,
    HALO_SIGMA_PIXELS,
    PIXEL_VARIANCE,
    Floats,
    PsfField,
    covariance,
    exponential,
    moffat,
    roundness,
)

SHAPES_DTYPE = np.dtype([(name, "f8") for name in ("x", "y", "flux", "xx", "xy", "yy")])
"""What is drawn: pixel position, total in the image's unit, and the second moments (pixels squared) of a
galaxy's
half-light ellipse, 0 for a point."""
_LOST = 5e-5
"""The part of a source's flux that may fall outside of where one of its Gaussians is drawn."""
_WIDE = 0.03
"""A galaxy so much smaller than a Gaussian of the PSF (in variance) widens it as one Gaussian."""
_DEEPEST = 1300.0
"""-2 ln of the smallest number in a box's corner that a double can hold."""


def galaxy_moments(radius: Floats, axis_ratio: Floats, angle: Floats) -> tuple[Floats, Floats, Floats]:
    """xx, xy, yy of ellipses: half-light semi-major `radius` (pixels), b/a, angle (radians from +x)."""
    c, s = np.cos(angle), np.sin(angle)
    major, minor = radius**2, (radius * axis_ratio) ** 2
    return major * c * c + minor * s * s, (major - minor) * c * s, major * s * s + minor * c * c


def draw(
    image: Image,
    sources: NDArray[np.void],
    psf: PsfField,
    faintest: float,
    *,
    origin: tuple[int, int] = (0, 0),
) -> None:
    """Add `sources` (SHAPES_DTYPE) to `image` (ny, nx), float32, in place.

    `faintest`: the surface brightness, in the image's unit, below which outskirts are left out. `origin`:
    where the image's pixel (0, 0) lies (x, y) in the grid of the sources and the PSF.
    """
    columns = [np.ascontiguousarray(sources[name]) for name in ("x", "y", "flux", "xx", "xy", "yy")]
    core, disc = moffat(), exponential()
    _draw(
        image, np.stack(columns, 1), origin, psf.shape, psf.coefficients,
        core.weight, core.sigma, roundness(), disc.weight, disc.sigma, faintest,
    )  # fmt: skip


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _draw(
    image: Image, sources: Floats, origin: tuple[int, int], shape: tuple[int, int], psf: Floats,
    core_weight: Floats, core_sigma: Floats, core_round: Floats, disc_weight: Floats, disc_sigma: Floats,
    faintest: float,
) -> None:  # fmt: skip
    halo = HALO_SIGMA_PIXELS * HALO_SIGMA_PIXELS + PIXEL_VARIANCE
    disc_variance = np.sum(disc_weight * disc_sigma * disc_sigma)
    for k in range(len(sources)):
        x, y, flux, gxx, gxy, gyy = sources[k]
        u = min(max(2.0 * x / (shape[1] - 1) - 1.0, -1.2), 1.2)
        v = min(max(2.0 * y / (shape[0] - 1) - 1.0, -1.2), 1.2)
        x, y = x - origin[0], y - origin[1]
        terms = np.array([1.0, v, v * v, u, u * v, u * u])
        fwhm, e1, e2 = np.dot(psf[0], terms), np.dot(psf[1], terms), np.dot(psf[2], terms)
        if flux * HALO_FLUX > faintest * 2.0 * np.pi * halo:
            add_gaussian(image, x, y, flux * HALO_FLUX, halo, 0.0, halo, faintest, 0.0)
        for i in range(len(core_sigma)):
            cxx, cxy, cyy = covariance(fwhm * core_sigma[i], e1 * core_round[i], e2 * core_round[i])
            if disc_variance * (gxx + gyy) < _WIDE * (cxx + cyy):
                s2 = disc_variance
                part = core_weight[i]
                least = _extent(part)
                add_gaussian(image, x, y, flux * part, cxx + s2 * gxx, cxy + s2 * gxy, cyy + s2 * gyy, faintest, least)
                continue
            for j in range(len(disc_sigma)):
                s2 = disc_sigma[j] * disc_sigma[j]
                part = core_weight[i] * disc_weight[j]
                least = _extent(part)
                add_gaussian(image, x, y, flux * part, cxx + s2 * gxx, cxy + s2 * gxy, cyy + s2 * gyy, faintest, least)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _extent(part: float) -> float:
    """Sigmas squared to which a Gaussian with this part of a source's flux is drawn at least."""
    return 2.0 * math.log(max(part / _LOST, 1.0))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def add_gaussian(
    image: Image,
    x: float,
    y: float,
    flux: float,
    xx: float,
    xy: float,
    yy: float,
    faintest: float,
    least: float,
) -> None:
    """Add a Gaussian out to where it falls below `faintest`, and to sqrt(`least`) sigma at least."""
    ny, nx = image.shape
    det = xx * yy - xy * xy
    peak = flux / (2.0 * np.pi * np.sqrt(det))
    extent = max(least, 2.0 * np.log(max(peak, 1e-300) / faintest))
    if not (flux > 0.0 and extent > 0.0):
        return
    reach_x, reach_y = np.sqrt(extent * xx), np.sqrt(extent * yy)
    x0, x1 = max(0, int(np.ceil(x - reach_x))), min(nx, int(np.floor(x + reach_x)) + 1)
    y0, y1 = max(0, int(np.ceil(y - reach_y))), min(ny, int(np.floor(y + reach_y)) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    a, b, c = yy / det, -xy / det, xx / det
    if extent / (1.0 - abs(xy) / np.sqrt(xx * yy)) > _DEEPEST:
        _add_directly(image[y0:y1, x0:x1], x0 - x, y0 - y, peak, a, b, c)
    else:
        _add_by_recurrence(image[y0:y1, x0:x1], x0 - x, y0 - y, peak, a, b, c)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_directly(image: Image, dx0: float, dy0: float, peak: float, a: float, b: float, c: float) -> None:
    for row in range(image.shape[0]):
        dy = dy0 + row
        for column in range(image.shape[1]):
            dx = dx0 + column
            image[row, column] += np.float32(peak * np.exp(-0.5 * (a * dx * dx + 2.0 * b * dx * dy + c * dy * dy)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_by_recurrence(image: Image, dx0: float, dy0: float, peak: float, a: float, b: float, c: float) -> None:
    """Both ways: down the first column from row to row, and along each row in four interleaved strands."""
    first = peak * np.exp(-0.5 * (a * dx0 * dx0 + 2.0 * b * dx0 * dy0 + c * dy0 * dy0))
    down, bend = np.exp(-b * dx0 - 0.5 * c * (2.0 * dy0 + 1.0)), np.exp(-c)
    along, shear = np.exp(-0.5 * a * (2.0 * dx0 + 1.0) - b * dy0), np.exp(-b)
    q = np.exp(-a)
    q4 = q * q * q * q
    q16 = q4 * q4 * q4 * q4
    columns = image.shape[1]
    whole = columns - columns % 4
    for row in range(image.shape[0]):
        v0 = first
        v1 = v0 * along
        v2 = v1 * along * q
        v3 = v2 * along * q * q
        r0 = along * along * along * along * (q * q * q * q * q * q)
        r1 = r0 * q4
        r2 = r1 * q4
        r3 = r2 * q4
        line = image[row]
        for k in range(0, whole, 4):
            line[k] += np.float32(v0)
            line[k + 1] += np.float32(v1)
            line[k + 2] += np.float32(v2)
            line[k + 3] += np.float32(v3)
            v0, v1, v2, v3 = v0 * r0, v1 * r1, v2 * r2, v3 * r3
            r0, r1, r2, r3 = r0 * q16, r1 * q16, r2 * q16, r3 * q16
        if whole < columns:
            line[whole] += np.float32(v0)
        if whole + 1 < columns:
            line[whole + 1] += np.float32(v1)
        if whole + 2 < columns:
            line[whole + 2] += np.float32(v2)
        first *= down
        down *= bend
        along *= shear

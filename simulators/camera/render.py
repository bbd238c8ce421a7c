"""Sources onto pixels: each a sum of Gaussians, drawn as far out as it can be seen.

A row of a Gaussian is a recurrence, two multiplications a pixel: g(x+1) = g(x) r(x), r(x+1) = r(x) q. The PSF is
evaluated at every source, so it varies smoothly over the image.

Photometry: a source's flux is what its core and its galaxy's profile hold; each Gaussian is drawn to at least
4 sigma (all but 3e-4 of its flux). The halo (`psf.HALO_FLUX`) comes on top, where it is brighter than `faintest`.
"""

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
"""What is drawn: pixel position, total in the image's unit, and the second moments (pixels squared) of a galaxy's
half-light ellipse, 0 for a point."""
_LEAST_EXTENT = 16.0
"""(4 sigma)^2."""


def galaxy_moments(radius: Floats, axis_ratio: Floats, angle: Floats) -> tuple[Floats, Floats, Floats]:
    """xx, xy, yy of ellipses: half-light semi-major `radius` (pixels), b/a, position angle (radians from +x)."""
    c, s = np.cos(angle), np.sin(angle)
    major, minor = radius**2, (radius * axis_ratio) ** 2
    return major * c * c + minor * s * s, (major - minor) * c * s, major * s * s + minor * c * c


def draw(
    image: Image, sources: NDArray[np.void], psf: PsfField, faintest: float, *, origin: tuple[int, int] = (0, 0)
) -> None:
    """Add `sources` (SHAPES_DTYPE) to `image` (ny, nx), float32, in place.

    `faintest`: the surface brightness, in the image's unit, below which outskirts are left out. `origin`: where
    the image's pixel (0, 0) lies (x, y) in the grid of the sources and the PSF.
    """
    columns = [np.ascontiguousarray(sources[name]) for name in ("x", "y", "flux", "xx", "xy", "yy")]
    core, disc = moffat(), exponential()
    _draw(
        image, np.stack(columns, 1), origin, psf.shape, psf.coefficients, core.weight, core.sigma, roundness(), disc.weight, disc.sigma,
        faintest,
    )  # fmt: skip


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _draw(
    image: Image, sources: Floats, origin: tuple[int, int], shape: tuple[int, int], psf: Floats, core_weight: Floats, core_sigma: Floats, core_round: Floats,
    disc_weight: Floats, disc_sigma: Floats, faintest: float,
) -> None:  # fmt: skip
    for k in range(len(sources)):
        x, y, flux, gxx, gxy, gyy = sources[k]
        u = min(max(2.0 * x / (shape[1] - 1) - 1.0, -1.2), 1.2)
        v = min(max(2.0 * y / (shape[0] - 1) - 1.0, -1.2), 1.2)
        x, y = x - origin[0], y - origin[1]
        terms = np.array([1.0, v, v * v, u, u * v, u * u])
        fwhm, e1, e2 = np.dot(psf[0], terms), np.dot(psf[1], terms), np.dot(psf[2], terms)
        halo = HALO_SIGMA_PIXELS * HALO_SIGMA_PIXELS + PIXEL_VARIANCE
        add_gaussian(image, x, y, flux * HALO_FLUX, halo, 0.0, halo, faintest, 0.0)
        extended = gxx > 0.0
        for i in range(len(core_sigma)):
            cxx, cxy, cyy = covariance(fwhm * core_sigma[i], e1 * core_round[i], e2 * core_round[i])
            if not extended:
                add_gaussian(image, x, y, flux * core_weight[i], cxx, cxy, cyy, faintest, _LEAST_EXTENT)
                continue
            for j in range(len(disc_sigma)):
                s2 = disc_sigma[j] * disc_sigma[j]
                part = flux * core_weight[i] * disc_weight[j]
                add_gaussian(
                    image, x, y, part, cxx + s2 * gxx, cxy + s2 * gxy, cyy + s2 * gyy, faintest, _LEAST_EXTENT
                )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def add_gaussian(
    image: Image, x: float, y: float, flux: float, xx: float, xy: float, yy: float, faintest: float, least: float
) -> None:
    """Add a Gaussian of covariance xx, xy, yy, to where it falls below `faintest` or to sqrt(`least`) sigma."""
    ny, nx = image.shape
    det = xx * yy - xy * xy
    peak = flux / (2.0 * np.pi * np.sqrt(det))
    extent = max(least, 2.0 * np.log(max(peak, 1e-300) / faintest))
    if flux <= 0.0 or extent <= 0.0:
        return
    a, b, c = yy / det, -xy / det, xx / det
    step = np.exp(-a)
    reach = np.sqrt(extent * yy)
    for row in range(max(0, int(np.ceil(y - reach))), min(ny - 1, int(np.floor(y + reach))) + 1):
        dy = row - y
        chord = np.sqrt(max(0.0, (extent - dy * dy / yy) / a))
        middle = x - b * dy / a
        first, last = max(0, int(np.ceil(middle - chord))), min(nx - 1, int(np.floor(middle + chord)))
        dx = first - x
        value = peak * np.exp(-0.5 * (a * dx * dx + 2.0 * b * dx * dy + c * dy * dy))
        ratio = np.exp(-0.5 * a * (2.0 * dx + 1.0) - b * dy)
        for column in range(first, last + 1):
            image[row, column] += np.float32(value)
            value *= ratio
            ratio *= step

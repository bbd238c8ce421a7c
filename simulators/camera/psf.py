"""Profiles as sums of Gaussians: the PSF, galaxies, and one with the other, all in closed form.

A Moffat and an exponential profile are both scale mixtures of Gaussians, integrals over ln(width) that a few
equal steps sum to 1e-3 or better. So a galaxy seen through the PSF is again a sum of Gaussians, with exactly
the PSF that stars have. The Gaussians describe the effective PSF: the pixel's own blur is in their widths,
and a pixel's value is theirs at its centre.
"""

from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import Image

Floats = NDArray[np.float64]

MOFFAT_BETA = 3.0
HALO_FLUX = 0.003
"""What the aureole adds to a source's flux, beyond what is counted as its flux."""
HALO_SIGMA_PIXELS = 60.0
PIXEL_VARIANCE = 1.0 / 12.0
"""Of a square pixel, pixels squared along each axis."""
_ROUND_BEYOND = 1.0
"""Gaussians wider than this many FWHM are the atmosphere's: round."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians of a circular profile: `weight` (n,) sums to one, `sigma` (n,) in units of its size."""

    weight: Floats
    sigma: Floats

    def flux_within(self, radius: float) -> float:
        """The part of the flux within a radius, in the unit of `sigma`."""
        return float(np.sum(self.weight * -np.expm1(-0.5 * (radius / self.sigma) ** 2)))


@lru_cache(maxsize=1)
def moffat() -> Mixture:
    """The PSF's core, its size the FWHM.

    (1 + r^2/a^2)^-beta is an integral of exp(-t (1 + r^2/a^2)) t^(beta-1) over t.
    """
    s = np.arange(-3.2, 2.3, 0.9)
    weight = np.exp((MOFFAT_BETA - 1.0) * s - np.exp(s))
    core = 1.0 / (2.0 * np.sqrt(2.0 ** (1.0 / MOFFAT_BETA) - 1.0))
    return Mixture(weight / weight.sum(), core * np.exp(-s / 2.0) / np.sqrt(2.0))


@lru_cache(maxsize=1)
def exponential() -> Mixture:
    """A disc galaxy, its size the half-light radius: exp(-r) is an integral of exp(-v r^2) over v."""
    s = np.log(1.0 / 6.0) + np.array([-1.1, 0.2, 1.5])
    weight = np.exp(-1.5 * s - 0.25 * np.exp(-s))
    raw = Mixture(weight / weight.sum(), 1.0 / np.sqrt(2.0 * np.exp(s)))
    low, high = 0.1, 10.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if raw.flux_within(middle) < 0.5 else (low, middle)
    return Mixture(raw.weight, raw.sigma / low)


@lru_cache(maxsize=1)
def roundness() -> Floats:
    """(n,): how much of the optics' ellipticity each Gaussian of the PSF shows."""
    result: Floats = 1.0 / (1.0 + (moffat().sigma / _ROUND_BEYOND) ** 2)
    return result


@dataclass(frozen=True, eq=False)
class PsfField:
    """How the PSF varies over an image of `shape` (ny, nx).

    `coefficients`: (3, 6), of FWHM (pixels, without the pixel's blur), e1 and e2, as polynomials 1, v, v^2,
    u, u v, u^2 of u, v in -1..1 over the image. e = (a - b) / (a + b), along x and along the diagonal.
    """

    coefficients: Floats
    shape: tuple[int, int]

    def at(self, x: float, y: float) -> Floats:
        """(FWHM in pixels, e1, e2) at a pixel."""
        result: Floats = self.coefficients @ _terms(x, y, self.shape[0], self.shape[1])
        return result

    def covariances(self, x: float, y: float) -> Floats:
        """(n, 3): xx, xy, yy (pixels squared) of the core's Gaussians at a pixel."""
        fwhm, e1, e2 = self.at(x, y)
        return np.array(
            [covariance(fwhm * s, e1 * r, e2 * r) for s, r in zip(moffat().sigma, roundness(), strict=True)]
        )

    def kernel(self, x: float, y: float, size: int) -> Image:
        """The effective PSF at a pixel as a (size, size) stamp, sum 1, without the halo."""
        half = size // 2
        dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
        stamp = np.zeros((size, size))
        for weight, (xx, xy, yy) in zip(moffat().weight, self.covariances(x, y), strict=True):
            det = xx * yy - xy * xy
            exponent = (yy * dx * dx - 2.0 * xy * dx * dy + xx * dy * dy) / det
            stamp += weight / (2.0 * np.pi * np.sqrt(det)) * np.exp(-0.5 * exponent)
        result: Image = (stamp / stamp.sum()).astype(np.float32)
        return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _terms(x: float, y: float, ny: int, nx: int) -> Floats:
    u, v = 2.0 * x / (nx - 1) - 1.0, 2.0 * y / (ny - 1) - 1.0
    return np.array([1.0, v, v * v, u, u * v, u * u])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def covariance(sigma: float, e1: float, e2: float) -> tuple[float, float, float]:
    """xx, xy, yy of a Gaussian of that size (area kept) and ellipticity, with the pixel's blur."""
    # [(1 + e)^2 and (1 - e)^2 along the axes] / (1 - e^2), written without the angle
    e_squared = e1 * e1 + e2 * e2
    scale = sigma * sigma / (1.0 - e_squared)
    xx = scale * (1.0 + e_squared + 2.0 * e1) + PIXEL_VARIANCE
    yy = scale * (1.0 + e_squared - 2.0 * e1) + PIXEL_VARIANCE
    return xx, scale * 2.0 * e2, yy


def overlaps(weight: Floats, cov: Floats) -> tuple[float, float]:
    """(sum P^2, sum P^3) over the pixels of a sum of Gaussians P: `weight` (n,), `cov` (n, 3).

    1 / sum P^2 is the effective number of pixels of a point source's photometry (King 1983, PASP 95, 163).
    """
    matrix = np.empty((len(weight), 2, 2))
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = (
        cov[:, 0],
        cov[:, 1],
        cov[:, 1],
        cov[:, 2],
    )
    pair = matrix[:, None] + matrix[None, :]
    squared = np.einsum("i,j,ij", weight, weight, 1.0 / (2.0 * np.pi * np.sqrt(np.linalg.det(pair))))
    inverse = np.linalg.inv(matrix)
    amplitude = weight / (2.0 * np.pi * np.sqrt(np.linalg.det(matrix)))
    triple = inverse[:, None, None] + inverse[None, :, None] + inverse[None, None, :]
    cubed = np.einsum("i,j,k,ijk", amplitude, amplitude, amplitude, 2.0 * np.pi / np.sqrt(np.linalg.det(triple)))
    return float(squared), float(cubed)

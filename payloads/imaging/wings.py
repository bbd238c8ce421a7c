"""How much of a star's light a PSF's stamp holds, and how much lies beyond it."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from payloads.imaging.psf import fwhm
from schemas.image import Psf

Floats = NDArray[np.float64]

_WINGS_FROM = 1.3
"""FWHMs from the centre: what is nearer tells little of what is far."""

_MODEL_ERROR = 0.02
_INDEX, _INDEX_SCATTER = 3.0, 1.0
"""What is believed of the profile's index where the stamp says nothing."""

_FAR = 8
"""Half-widths to which light is added up pixel by pixel; beyond them, in rings."""


def light_within(psf: Psf) -> float:
    """The part of a point's light that is within the stamp of the PSF (at the centre), 0 to 1.

    What is beyond is that of a Moffat profile (1969, A&A 3, 455) through the stamp's own wings. Of a Moffat PSF it is
    right to 2e-3, the better the more FWHMs the stamp has; a Kolmogorov PSF, whose wings are higher, has more beyond.
    """
    ny, nx = psf.shape
    kernel = psf.at((nx - 1) / 2, (ny - 1) / 2).astype(np.float64)
    radius, profile, error = _profile(kernel)
    width = fwhm(kernel.astype(np.float32))
    outer = radius > min(_WINGS_FROM * width, radius[-4])
    radius, profile, error = radius[outer], profile[outer], error[outer]

    def misfit(terms: Floats) -> Floats:
        return np.append((_moffat(terms, radius) - profile) / error, (terms[2] - _INDEX) / _INDEX_SCATTER)

    start = np.array([np.log(kernel.max()), np.log(width), _INDEX])
    terms = least_squares(misfit, start, bounds=([-40.0, -3.0, 1.3], [10.0, 6.0, 8.0])).x
    return 1.0 / (1.0 + _beyond(terms, kernel.shape[0] // 2))


def _profile(kernel: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean radius of each ring of a pixel's width, the kernel's mean there, its error."""
    half = kernel.shape[0] // 2
    offset = np.arange(-half, half + 1.0)
    radii = np.hypot(offset[:, None], offset)
    ring = radii.round().astype(np.int64).ravel()

    def mean(values: Floats) -> Floats:
        result: Floats = (np.bincount(ring, values.ravel()) / np.bincount(ring))[: half + 1]
        return result

    profile = mean(kernel)
    scatter = np.maximum(mean(kernel**2) - profile**2, 0.0) / np.bincount(ring)[: half + 1]
    return mean(radii), profile, np.sqrt((_MODEL_ERROR * profile) ** 2 + scatter + 1e-16)


def _moffat(terms: Floats, radius: Floats) -> Floats:
    """`terms`: logarithms of the peak and of the core's radius (pixels), index."""
    result: Floats = np.exp(terms[0]) * (1.0 + (radius / np.exp(terms[1])) ** 2) ** -terms[2]
    return result


def _beyond(terms: Floats, half: int) -> float:
    """Light of the profile outside the square of (2 half + 1) pixels."""
    offset = np.abs(np.arange(-_FAR * half, _FAR * half + 1.0))
    outside = np.maximum(offset[:, None], offset) > half
    radii = np.hypot(offset[:, None], offset)
    seen = outside & (radii <= _FAR * half)
    core, index = np.exp(terms[1]), terms[2]
    last = np.exp(terms[0]) * np.pi * core**2 / (index - 1.0) * (1.0 + (_FAR * half / core) ** 2) ** (1.0 - index)
    return float(_moffat(terms, radii[seen]).sum() + last)

"""How far a subtraction is off in place and in brightness, measured on what is left of its stars."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from payloads.imaging.photometry import UNUSABLE
from payloads.imaging.psf_field import kernels_at
from schemas.image import Difference, Image, Psf

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_LEAST_SNR = 100.0
_FEWEST = 20


@dataclass(frozen=True)
class Systematics:
    """Scatter from star to star: `astrometric` per axis, pixels; `photometric`, part of the flux."""

    astrometric: float
    photometric: float


UNKNOWN = Systematics(0.03, 0.005)
"""Where fewer than 20 stars can tell: the first as Zackay, Ofek & Gal-Yam (2016, ApJ 830, 27) found it in practice."""
LEAST = Systematics(0.01, 0.002)
"""Stars that the kernel was fitted to show a little less than others would."""
MOST = Systematics(0.1, 0.03)
"""What is worse than this is no scatter, but a wrong match; errors so large would hide every source on a galaxy."""


def measure_systematics(difference: Difference, matched: Image, psf: Psf, x: Indices, y: Indices) -> Systematics:
    """From the stars at pixels x, y (n,) of a difference, and the light (nJy, of `psf`) that was taken from it there.

    A star misplaced by d leaves d times its PSF's slope, one mis-scaled a part of its PSF: both are fitted to each, and
    their scatter less its noise's is the subtraction's.
    """
    pixels = difference.pixels
    half = max(difference.psf.components.shape[1], psf.components.shape[1]) // 2
    ny, nx = pixels.shape
    inside = (np.minimum(x, y) >= half) & (x < nx - half) & (y < ny - half)  # a PSF that is given may be of any width
    x, y = x[inside], y[inside]
    psfs, profiles = (kernels_at(p, x.astype(float), y.astype(float)).astype(np.float64) for p in (difference.psf, psf))
    at = _stamps(x, y, psfs.shape[1] // 2)
    image, variance = pixels.image[at].astype(np.float64), pixels.variance[at].astype(np.float64)
    clean = ((pixels.mask[at] & UNUSABLE) == 0).all((1, 2)) & np.isfinite(image).all((1, 2))
    light = matched[_stamps(x, y, profiles.shape[1] // 2)]
    flux = (profiles * light).sum((1, 2)) / (profiles**2).sum((1, 2))
    snr = flux / np.sqrt((psfs**2 * variance).sum((1, 2))) * (psfs**2).sum((1, 2))
    chosen = clean & (snr > _LEAST_SNR)
    if chosen.sum() < _FEWEST:
        return UNKNOWN
    left, error = _fitted(psfs[chosen], image[chosen], variance[chosen])
    left, error = left / flux[chosen, None], error / flux[chosen, None]
    scatter = np.sqrt(np.maximum((1.4826 * np.median(np.abs(left), 0)) ** 2 - np.median(error, 0) ** 2, 0.0))
    return Systematics(
        float(np.clip(np.hypot(*scatter[1:]) / np.sqrt(2.0), LEAST.astrometric, MOST.astrometric)),
        float(np.clip(scatter[0], LEAST.photometric, MOST.photometric)),
    )


def _stamps(x: Indices, y: Indices, half: int) -> tuple[Indices, Indices]:
    offset = np.arange(-half, half + 1)
    return y[:, None, None] + offset[:, None], x[:, None, None] + offset


def _fitted(psfs: Floats, image: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Parts (n, 3) of the PSF and of its slopes in x and y in each image (n, k, k), and their errors."""
    n = len(psfs)
    shapes = np.stack([psfs, np.gradient(psfs, axis=2), np.gradient(psfs, axis=1)], axis=1).reshape(n, 3, -1)
    inverse = np.linalg.inv(shapes @ shapes.transpose(0, 2, 1))
    parts = (inverse @ (shapes @ image.reshape(n, -1, 1)))[:, :, 0]
    spread = inverse @ ((shapes * variance.reshape(n, 1, -1)) @ shapes.transpose(0, 2, 1)) @ inverse
    return parts, np.sqrt(np.einsum("nii->ni", spread))

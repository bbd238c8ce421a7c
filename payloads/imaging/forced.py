"""PSF photometry forced at given places of an image."""

import numpy as np
from numpy.typing import NDArray

from payloads.imaging.photometry import fit_point_sources
from payloads.imaging.psf_field import kernels_at
from schemas.image import MaskedImage, Psf

Floats = NDArray[np.float64]


def forced_fluxes(pixels: MaskedImage, psf: Psf, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """PSF fluxes and errors at pixels x, y (n,), NaN where the position is off the image or unusable."""
    flux, error = np.full(x.size, np.nan), np.full(x.size, np.nan)
    ny, nx = pixels.shape
    on = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    if on.any():
        fits = fit_point_sources(pixels, kernels_at(psf, x[on], y[on]), x[on], y[on], move=False)
        flux[on], error[on] = fits.flux, fits.flux_err
    return flux, error

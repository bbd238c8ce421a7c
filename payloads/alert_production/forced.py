"""Photometry forced at given places, for DIAObjects that were not detected and for limits before a discovery."""

import numpy as np
from numpy.typing import NDArray

from payloads.imaging.photometry import fit_point_sources
from payloads.imaging.psf_field import kernels_at
from schemas.image import Difference, MaskedImage, Psf, VisitImage
from schemas.tables import Table

Floats = NDArray[np.float64]

FORCED_DTYPE = np.dtype(
    [("x", "f8"), ("y", "f8"), ("psfFlux", "f4"), ("psfFluxErr", "f4")]
    + [("scienceFlux", "f4"), ("scienceFluxErr", "f4"), ("usable", "?")]
)
"""Pixels (0-based); fluxes nJy, on the difference and on the science image. `usable`: both could be measured."""


def forced_photometry(difference: Difference, science: VisitImage, ra: Floats, dec: Floats) -> Table:
    """PSF fluxes at ra, dec (deg, ICRS, (n,)), one row each, in order; NaN and not usable off the image or on holes."""
    x, y = difference.wcs.sky_to_pixel(np.asarray(ra, np.float64), np.asarray(dec, np.float64))
    table = np.zeros(x.size, FORCED_DTYPE)
    table["x"], table["y"] = x, y
    for name, pixels, psf in (
        ("psf", difference.pixels, difference.psf),
        ("science", science.pixels, science.psf),
    ):
        table[f"{name}Flux"], table[f"{name}FluxErr"] = forced_fluxes(pixels, psf, x, y)
    table["usable"] = np.isfinite(table["psfFlux"]) & np.isfinite(table["scienceFlux"])
    return table


def forced_fluxes(pixels: MaskedImage, psf: Psf, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """PSF fluxes and errors at pixels x, y (n,), NaN where the position is off the image or unusable."""
    flux, error = np.full(x.size, np.nan), np.full(x.size, np.nan)
    ny, nx = pixels.shape
    on = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    if on.any():
        fits = fit_point_sources(pixels, kernels_at(psf, x[on], y[on]), x[on], y[on], move=False)
        flux[on], error[on] = fits.flux, fits.flux_err
    return flux, error

"""FITS images of a plain sky, for what reads them."""

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

SHAPE = (300, 400)
SKY_E = 1200.0
GAIN = 2.5
TAN: dict[str, str | float] = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS",
    "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 200.0, "CRPIX2": 150.0, "CD1_1": -1e-4, "CD2_2": 1e-4,
}  # fmt: skip


def sky(seed: int = 1) -> NDArray[np.float32]:
    """Photons of a blank sky, ADU (SKY_E / GAIN on average), float32 of SHAPE."""
    photons = np.random.default_rng(seed).poisson(SKY_E, SHAPE)
    return (photons / GAIN).astype(np.float32)


def written(path: Path, data: NDArray[Any] | None, *others: fits.ImageHDU, **cards: str | float) -> Path:
    """A file with a WCS, other cards and other extensions."""
    primary = fits.PrimaryHDU(data, fits.Header(TAN | cards))
    fits.HDUList([primary, *others]).writeto(path)
    return path

"""Where detectors look: the nominal WCS of a detector for a pointing of the telescope."""

import numpy as np

from schemas.instrument import PIXEL_ARCSEC, PIXEL_MM, Detector
from schemas.wcs import Wcs


def nominal_wcs(detector: Detector, ra: float, dec: float, rotation: float) -> Wcs:
    """TAN about the boresight (`ra`, `dec`, deg ICRS), no distortion.

    `rotation`: position angle (deg, north through east) of the focal plane's +y; +x points west at rotation 0.
    """
    scale = PIXEL_ARCSEC / 3600.0
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    cd = scale * np.array([[-c, s], [s, c]])
    x_mm, y_mm = detector.center_mm
    crpix = (
        (detector.format.width - 1) / 2.0 - x_mm / PIXEL_MM,
        (detector.format.height - 1) / 2.0 - y_mm / PIXEL_MM,
    )
    return Wcs((ra, dec), crpix, cd)


def center_of(detector: Detector, ra: float, dec: float, rotation: float) -> tuple[float, float]:
    """Where a detector's centre looks by `nominal_wcs`, (ra, dec), deg ICRS."""
    form = detector.format
    center = nominal_wcs(detector, ra, dec, rotation).pixel_to_sky((form.width - 1) / 2.0, (form.height - 1) / 2.0)
    return float(center[0]), float(center[1])

"""Tables of a data release: of the official ones (`drp_base.yaml` of lsst-sdm-schemas) those columns that are filled.

Names and types are the official ones. Tables have the columns of all bands, whichever were observed: what a band
without a coadd tells is null, its `_flag` columns are True.
"""

from collections.abc import Iterable
from functools import cache

import numpy as np

from schemas.instrument import BANDS
from schemas.tables import kind_of, official_schema

APERTURES = (3, 6, 9, 12, 17, 25)
"""Radii (pixels of a coadd, 0.2 arcsec) of the aperture fluxes."""

_OBJECT = (
    "objectId", "parentObjectId", "tract", "patch",
    "coord_ra", "coord_raErr", "coord_dec", "coord_decErr", "coord_ra_dec_Cov", "coord_flag",
    "refBand", "refExtendedness", "footprintArea",
    "exponential_ra", "exponential_raErr", "exponential_dec", "exponential_decErr", "exponential_ra_dec_Cov",
    "exponential_reff_major", "exponential_reff_minor", "exponential_reff_x", "exponential_reff_y", "exponential_rho",
    "exponential_unknown_flag",
    "shape_xx", "shape_yy", "shape_xy", "shape_flag",
    "deblend_parentNPeaks", "deblend_parentNChild", "deblend_peak_center_x", "deblend_peak_center_y",
    "detect_fromBlend", "detect_isIsolated", "detect_isPatchInner", "detect_isTractInner", "detect_isPrimary",
)  # fmt: skip

_OF_BAND = (
    "psfFlux", "psfFluxErr", "psfFlux_flag", "psfFlux_flag_edge", "psfFlux_flag_noGoodPixels", "psfMag", "psfMagErr",
    *(f"ap{radius:02d}Flux{suffix}" for radius in APERTURES for suffix in ("", "Err", "_flag")),
    "kronFlux", "kronFluxErr", "kronFlux_flag", "kronRad",
    "exponentialFlux", "exponentialFluxErr", "extendedness", "extendedness_flag",
    "ixx", "iyy", "ixy", "i_flag", "ixxPSF", "iyyPSF", "ixyPSF", "iPSF_flag",
    "blendedness", "blendedness_flag", "inputCount", "inputCount_flag", "invalidPsfFlag",
    "pixelFlags_nodata", "pixelFlags_cr", "pixelFlags_crCenter", "pixelFlags_interpolated",
    "pixelFlags_interpolatedCenter", "pixelFlags_saturated", "pixelFlags_saturatedCenter",
)  # fmt: skip

_FORCED_SOURCE = (
    "objectId", "parentObjectId", "tract", "patch", "visit", "detector", "band", "coord_ra", "coord_dec",
    "psfFlux", "psfFluxErr", "psfFlux_flag", "invalidPsfFlag",
    "pixelFlags_bad", "pixelFlags_cr", "pixelFlags_crCenter", "pixelFlags_edge", "pixelFlags_interpolated",
    "pixelFlags_interpolatedCenter", "pixelFlags_nodata", "pixelFlags_saturated", "pixelFlags_saturatedCenter",
    "pixelFlags_suspect", "pixelFlags_suspectCenter",
)  # fmt: skip

OWN_COLUMNS = {
    "expMidptMJD": "ForcedSource: when (TAI), as the Visit table has it, so that no join is needed",
    "psfFluxChi2": "light curves: of psfFlux about its weighted mean, a degree of freedom",
    "psfFluxStetsonJ": "light curves: Stetson's J of psfFlux",
    "firstMJD": "light curves: of the first point (TAI)",
    "lastMJD": "light curves: of the last point (TAI)",
}
"""Columns that no official table has under that name, and what they are."""

_LIGHT_CURVE = ("Ndata", "Mean", "MeanErr", "Sigma", "Min", "Max", "ErrMean", "MaxSlope")
"""As the official DiaObject has them for each band, `r_psfFluxMean` and so on."""


@cache
def object_dtype() -> np.dtype[np.void]:
    """Of the Object table: deg ICRS, nJy, pixels of the coadd."""
    names = (*_OBJECT, *(f"{band}_{name}" for band in BANDS for name in _OF_BAND))
    return _official("Object", names)


@cache
def forced_source_dtype() -> np.dtype[np.void]:
    """Of the ForcedSource table: deg ICRS, nJy; and `expMidptMJD`, days TAI."""
    return np.dtype([*_fields("ForcedSource", _FORCED_SOURCE), ("expMidptMJD", "f8")])


@cache
def light_curve_dtype() -> np.dtype[np.void]:
    """A row for each object and band: of `psfFlux` (nJy) what DiaObject's columns of that name say."""
    official = official_schema("drp_base.yaml")["DiaObject"]
    of_flux = [(f"psfFlux{name}", kind_of(official[f"r_psfFlux{name}"])) for name in _LIGHT_CURVE]
    own = [(name, "f8") for name in OWN_COLUMNS if name != "expMidptMJD"]
    return np.dtype([*_fields("ForcedSource", ("objectId", "tract", "patch", "band")), *of_flux, *own])


def _official(table: str, names: Iterable[str]) -> np.dtype[np.void]:
    return np.dtype(_fields(table, names))


def _fields(table: str, names: Iterable[str]) -> list[tuple[str, str]]:
    columns = official_schema("drp_base.yaml")[table]
    return [(name, kind_of(columns[name])) for name in names]

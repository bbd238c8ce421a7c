"""What FITS headers of many observatories say of an image: its place, time, filter and noise."""

import math
import re
import warnings
from collections.abc import Mapping

import numpy as np
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS, FITSFixedWarning
from numpy.typing import NDArray

from schemas.clock import tai_from_mjd
from schemas.errors import BadData
from schemas.instrument import BANDS
from schemas.wcs import Wcs, to_tangent

GAIN = ("GAIN", "EGAIN", "CCDGAIN", "GAINEFF")
PEDESTAL = ("SOFTBIAS", "PEDESTAL")
"""Added to all pixels, so that none is negative (SDSS fpC, and others)."""
SATURATION = ("SATURATE", "SATURATA", "SATLEVEL")

_GRID = 17
_WORST_PX = 0.05
_DAYS_OF_SECONDS = 1e6
"""A TAI keyword above this is in seconds, not days (SDSS)."""
_SCALES = ("tai", "tt", "tdb")
"""What TIMESYS may be but UTC, its default (FITS Paper IV, Rots et al. 2015, A&A 574, A36)."""
_NUMBERS = re.compile(r"(CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]")
"""Cards of a WCS that wcslib passes over in silence where they hold text."""

Floats = NDArray[np.float64]


def number(header: fits.Header, names: tuple[str, ...]) -> float | None:
    """The first of some keywords that holds a finite number, be it as text; None if none does."""
    for name in names:
        try:
            value = float(header[name])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            return value
    return None


def midpoint_of(header: fits.Header) -> float:
    """TAI s of the middle of the exposure, as far as the header tells; 2000-01-01 if it tells nothing."""
    half = (number(header, ("EXPTIME", "EXPOSURE")) or 0.0) / 2.0
    return tai_from_mjd(_start_mjd(header)) + half


def _start_mjd(header: fits.Header) -> float:
    told = str(header.get("TIMESYS", "")).strip().lower()
    scale = told if told in _SCALES else "utc"
    mjd = number(header, ("MJD-OBS", "MJD_OBS", "MJD"))
    if mjd is not None:
        return float(Time(mjd, format="mjd", scale=scale).tai.mjd)
    tai = number(header, ("TAI",))
    if tai is not None:
        return tai / 86400.0 if tai > _DAYS_OF_SECONDS else tai
    try:
        return float(Time(str(header["DATE-OBS"]), scale=scale).tai.mjd)
    except (KeyError, ValueError):
        return float(Time("2000-01-01", scale="tai").mjd)


def exposure_of(header: fits.Header) -> float:
    """Seconds; 0 if the header does not tell."""
    return number(header, ("EXPTIME", "EXPOSURE")) or 0.0


def filter_of(header: fits.Header) -> str:
    """The filter's name as the header has it, or ""."""
    for name in ("FILTER", "FILTER1", "BAND", "FILTBAND"):
        if isinstance(header.get(name), str) and header[name].strip():
            return str(header[name]).strip()
    return ""


def common_band(one: str, other: str) -> str:
    """The band of ugrizy that two filters' names begin with; r stands in where neither tells one.

    Raises BadData if they begin with different ones.
    """
    bands = {name[0] for name in (one, other) if name[:1] in BANDS and (len(name) == 1 or not name[1].isalpha())}
    if len(bands) == 2:
        raise BadData(f"an image in {one} and a template in {other} are not of one band")
    return bands.pop() if bands else "r"


def wcs_of(header: fits.Header, shape: tuple[int, int]) -> Wcs:
    """Whatever projection and distortion the header has, as TAN with SIP of third order, by a fit to a grid.

    Raises BadData if the header has no celestial WCS, or one that cubics do not follow to 0.05 pixel.
    """
    x, y = (axis.ravel() for axis in np.meshgrid(*(np.linspace(0.0, n - 1.0, _GRID) for n in shape[::-1])))
    ra, dec = _on_the_sky(header, x, y)
    centre = (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0
    middle = (_GRID * _GRID) // 2
    crval = float(ra[middle]), float(dec[middle])
    u, v = x - centre[0], y - centre[1]
    wcs = Wcs(crval, centre, *_cubic(u, v, np.stack(to_tangent(ra, dec, crval))))
    back = np.hypot(*(found - true for found, true in zip(wcs.sky_to_pixel(ra, dec), (x, y), strict=True)))
    if not (back < _WORST_PX).all():
        raise BadData(f"a cubic misses its WCS by {np.nanmax(back):.2f} pixels")
    return wcs


def _on_the_sky(header: fits.Header, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    text = next((name for name in header if _NUMBERS.fullmatch(name) and isinstance(header[name], str)), None)
    if text is not None:
        raise BadData(f"its WCS cannot be read: {text} is {header[text]!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            full = WCS(header).celestial
            if full.naxis != 2:
                raise BadData("its header has no celestial WCS")
            sky = full.pixel_to_world(x, y).icrs
    except (ValueError, TypeError, AttributeError) as error:
        raise BadData(f"its WCS cannot be read: {error}") from error
    if not (np.isfinite(sky.ra.deg).all() and np.isfinite(sky.dec.deg).all()):
        raise BadData("its WCS puts pixels nowhere on the sky")
    return sky.ra.deg, sky.dec.deg


def _cubic(u: Floats, v: Floats, tangent: Floats) -> tuple[Floats, Floats]:
    """CD matrix and SIP coefficients of tangent plane coordinates (2, n), deg, at pixels (u, v) about the centre."""
    reach = max(float(np.abs(u).max()), float(np.abs(v).max()), 1.0)
    powers = [(p, q) for p in range(4) for q in range(4 - p)]
    terms = np.stack([(u / reach) ** p * (v / reach) ** q for p, q in powers], axis=1)
    fitted = np.linalg.lstsq(terms, tangent.T, rcond=None)[0]
    by_power: Mapping[tuple[int, int], Floats] = {
        (p, q): row / reach ** (p + q) for (p, q), row in zip(powers, fitted, strict=True)
    }
    cd = np.stack([by_power[1, 0], by_power[0, 1]], axis=1)
    if abs(np.linalg.det(cd)) < np.finfo(float).tiny:
        raise BadData("its WCS is singular")
    sip = np.zeros((2, 4, 4))
    for p, q in powers:
        if p + q != 1:
            sip[:, p, q] = np.linalg.solve(cd, by_power[p, q])
    return cd, sip

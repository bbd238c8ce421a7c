"""Telescope and sky of a visit: seeing, transparency, sky brightness, PSF over the field, pointing.

Everything is a pure function of (seed, visit): the snaps of a visit share it. Left out: moonlight,
differential refraction, fringes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.clock import TAI_MINUS_UTC
from schemas.errors import BadData
from schemas.image import Observation
from schemas.instrument import BANDS, PIXEL_ARCSEC, Detector
from schemas.pointing import nominal_wcs
from schemas.wcs import Wcs, to_tangent
from simulators.camera.noise import Purpose, generator
from simulators.camera.psf import PsfField

Floats = NDArray[np.float64]

AB_NANOJANSKY = 31.4
"""Magnitude of 1 nJy."""
ZERO_POINT = dict(zip(BANDS, (27.03, 28.38, 28.16, 27.85, 27.46, 26.68), strict=True))
"""AB magnitude of 1 electron/s at airmass 1 (SMTN-002)."""
SKY_MAG = dict(zip(BANDS, (22.96, 22.26, 21.20, 20.48, 19.60, 18.61), strict=True))
"""Dark sky at the zenith, mag/arcsec^2 (Ivezic et al. 2019, ApJ 873, 111, table 2)."""
EXTINCTION = dict(zip(BANDS, (0.45, 0.20, 0.12, 0.07, 0.06, 0.10), strict=True))
"""mag per airmass (SMTN-002)."""
_WAVELENGTH_NM = dict(zip(BANDS, (367.0, 482.0, 622.0, 754.0, 869.0, 971.0), strict=True))
_PACHON_LON, _PACHON_LAT = -70.7494, -30.2446
_FIELD_RADIUS_DEG = 1.75
_POINTING_ARCSEC, _ROTATION_ARCSEC = 3.0, 5.0
_SCALE_SCATTER = 2e-5
_DISTORTION_PIXELS = 0.5
"""At a CCD's edge, each of the terms of order 2 and 3 (rms) has half of this."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """Of one visit. `seeing`: FWHM of the PSF at the field's centre, arcsec. `sky`: electrons/s/pixel there.

    `zero_point`: electrons/s per nJy through a detector of response 1. `sky_slope` (2,): relative change of
    the sky per degree of field. `psf` (3, 6): relative FWHM, e1, e2 as polynomials 1, y, y^2, x, x y, x^2 of
    the field position in units of 1.75 deg. `pointing` (ra, dec, rotation), arcsec on the sky: true less
    reported.
    """

    band: str
    airmass: float
    seeing: float
    transparency: float
    zero_point: float
    sky: float
    sky_slope: Floats
    psf: Floats
    pointing: Floats


def airmass(ra: float, dec: float, tai: float) -> float:
    """Of ICRS deg at TAI seconds from Cerro Pachon, to about 1 %; 2.5 at most, for what has set as well."""
    days_ut = (tai - TAI_MINUS_UTC) / 86400.0 - 10957.5  # since J2000; UT1 taken as UTC
    sidereal = 280.46062 + 360.98564737 * days_ut + _PACHON_LON
    hour, d, lat = np.radians(sidereal - ra), np.radians(dec), np.radians(_PACHON_LAT)
    sin_altitude = np.sin(lat) * np.sin(d) + np.cos(lat) * np.cos(d) * np.cos(hour)
    return float(1.0 / max(sin_altitude, 0.4))


def conditions(seed: int, observation: Observation, epoch: float) -> Conditions:
    """The conditions of the observation's visit, whose first snap is centred on `epoch` (TAI s).

    Raises BadData for a filter of which it is not known what passes it.
    """
    if observation.band not in BANDS:
        raise BadData(f"{observation.image_name}: what filter {observation.physical_filter!r} lets pass is not known")
    rng = generator(seed, Purpose.CONDITIONS, observation.visit)
    band, mass = observation.band, airmass(observation.ra, observation.dec, epoch)
    color = (_WAVELENGTH_NM[band] / _WAVELENGTH_NM["r"]) ** -0.2
    # 0.7 to 1.2 arcsec, its median in r 0.87 at the zenith
    seeing = 0.7 + 0.5 / (1.0 + np.exp(0.7 - 0.9 * rng.normal() - 5.0 * np.log(color * mass**0.6)))
    transparency = 1.0 + 0.05 * np.clip(rng.normal(), -2.0, 2.0) / 2.0
    magnitude = ZERO_POINT[band] - EXTINCTION[band] * (mass - 1.0)
    brightness = mass * rng.lognormal(0.0, 0.08)
    return Conditions(
        band=band,
        airmass=mass,
        seeing=float(seeing),
        transparency=float(transparency),
        zero_point=float(transparency * 10.0 ** (0.4 * (magnitude - AB_NANOJANSKY))),
        sky=float(brightness * 10.0 ** (0.4 * (ZERO_POINT[band] - SKY_MAG[band])) * PIXEL_ARCSEC**2),
        sky_slope=rng.normal(0.0, 0.01, 2),
        psf=_aberrations(rng),
        pointing=rng.normal(0.0, 1.0, 3) * (_POINTING_ARCSEC, _POINTING_ARCSEC, _ROTATION_ARCSEC) / (1.4, 1.4, 1.0),
    )


def _aberrations(rng: np.random.Generator) -> Floats:
    """Defocus and tilt of the camera (FWHM), wind and tracking (constant e), astigmatism over the field."""
    curvature = 0.03 + 0.01 * rng.normal()
    fwhm = [1.0, 0.012 * rng.normal(), curvature, 0.012 * rng.normal(), 0.006 * rng.normal(), curvature]
    e = rng.normal(0.0, 1.0, (2, 6)) * (0.012, 0.008, 0.008, 0.008, 0.008, 0.008)
    return np.array([fwhm, *e])


def field_position(detector: Detector, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Degrees along the focal plane's x and y of a detector's pixels."""
    cx, cy = detector.center_arcsec
    form = detector.format
    fx = (cx + (x - (form.width - 1) / 2.0) * PIXEL_ARCSEC) / 3600.0
    return fx, (cy + (y - (form.height - 1) / 2.0) * PIXEL_ARCSEC) / 3600.0


def vignetting(field_x: Floats, field_y: Floats) -> Floats:
    """Throughput by field position (deg), 1 on axis: falls from 1.5 deg on."""
    radius = np.hypot(field_x, field_y)
    result: Floats = 1.0 / (1.0 + np.exp((radius - 1.9) / 0.09))
    return result


def psf_field(seed: int, observed: Conditions, detector: Detector) -> PsfField:
    """The PSF over a detector: the field's polynomial, and the detector's own height and tilt."""
    form = detector.format
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(0, form.width - 1, 4), np.linspace(0, form.height - 1, 4)))
    field_x, field_y = (f / _FIELD_RADIUS_DEG for f in field_position(detector, x, y))
    values = observed.psf @ _terms(field_x, field_y)
    own = generator(seed, Purpose.FOCUS, detector.id).normal(0.0, 1.0, (3, 6))
    own *= np.array([[0.008], [0.006], [0.006]]) * (1.0, 0.5, 0.3, 0.5, 0.3, 0.3)
    u, v = 2.0 * x / (form.width - 1) - 1.0, 2.0 * y / (form.height - 1) - 1.0
    coefficients = np.linalg.lstsq(_terms(u, v).T, values.T, rcond=None)[0].T + own
    coefficients[0] *= observed.seeing / PIXEL_ARCSEC
    return PsfField(coefficients, (form.height, form.width))


def _terms(x: Floats, y: Floats) -> Floats:
    return np.stack([np.ones_like(x), y, y * y, x, x * y, x * x])


def true_wcs(seed: int, observed: Conditions, observation: Observation, detector: Detector) -> Wcs:
    """Where the detector's pixels look: the nominal WCS mispointed and misrotated, with a cubic distortion.

    The distortion belongs to detector and optics and varies by 2 % of itself from visit to visit.
    """
    d_ra, d_dec, d_rotation = observed.pointing / 3600.0
    dec = observation.dec + d_dec
    ra = observation.ra + d_ra / np.cos(np.radians(dec))
    nominal = nominal_wcs(detector, ra, dec, observation.rotation + d_rotation)
    center = (detector.format.width - 1) / 2.0, (detector.format.height - 1) / 2.0
    crval = tuple(float(c) for c in nominal.pixel_to_sky(*center))
    scale = 1.0 + _SCALE_SCATTER * generator(seed, Purpose.DISTORTION, observation.visit).normal()
    cd = scale * _jacobian(nominal, center, (crval[0], crval[1]))
    return Wcs((crval[0], crval[1]), center, cd, _distortion(seed, observation.visit, detector))


def _jacobian(wcs: Wcs, center: tuple[float, float], crval: tuple[float, float]) -> Floats:
    """Degrees of the plane tangent at `crval` per pixel, at the pixel `center`."""
    x, y = np.array([1.0, -1.0, 0.0, 0.0]) + center[0], np.array([0.0, 0.0, 1.0, -1.0]) + center[1]
    plane = np.stack(to_tangent(*wcs.pixel_to_sky(x, y), crval))
    return np.stack([plane[:, 0] - plane[:, 1], plane[:, 2] - plane[:, 3]], 1) / 2.0


def _distortion(seed: int, visit: int, detector: Detector) -> Floats:
    lasting = generator(seed, Purpose.DISTORTION, 0, detector.id).normal(0.0, 1.0, (2, 4, 4))
    passing = generator(seed, Purpose.DISTORTION, visit, detector.id).normal(0.0, 1.0, (2, 4, 4))
    order = np.add.outer(np.arange(4), np.arange(4))
    size = np.where((order == 2) | (order == 3), _DISTORTION_PIXELS / 2.0, 0.0)
    half = detector.format.height / 2.0
    result: Floats = (lasting + 0.02 * passing) * size / half ** order.astype(np.float64)
    return result

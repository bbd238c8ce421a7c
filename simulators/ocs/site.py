"""What stands over Cerro Pachón when: sidereal time, the Sun, and latitudes that tell good fields from bad.

Low precision formulae (Astronomical Almanac, section C, for the Sun, 0.01 deg; Meeus, Astronomical
Algorithms, chapter 12, for sidereal time): a planner needs no better. Angles deg; positions ICRS.
"""

import datetime as dt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.clock import TAI_MINUS_UTC

LONGITUDE, LATITUDE = -70.749417, -30.244639
"""East longitude and latitude of the Simonyi Survey Telescope, deg."""

ASTRONOMICAL_TWILIGHT = -18.0
_J2000_UNIX = 946728000.0  # 2000-01-01T12:00:00 UTC
_OBLIQUITY = 23.4392911
_GALACTIC_POLE = 192.85948, 27.12825

Floats = NDArray[np.float64]


def hour_angle(ra: ArrayLike, tai: float) -> Floats:
    """Hour angle (deg, -180..180, west positive) of `ra` at TAI seconds `tai`."""
    return _wrap(_sidereal_time(np.asarray(tai, dtype=np.float64)) - np.asarray(ra, dtype=np.float64))


def sun_altitude(tai: ArrayLike) -> Floats:
    """Altitude of the Sun's centre without refraction, deg."""
    times = np.asarray(tai, dtype=np.float64)
    ra, dec = _sun(times)
    zenith = _sidereal_time(times), LATITUDE
    return _latitude(ra, dec, *zenith)


def dark_hours(day_obs: int) -> tuple[float, float]:
    """(first, last) TAI second, to the minute, with the Sun 18 deg down in the night `day_obs` (YYYYMMDD)."""
    noon = dt.datetime(day_obs // 10000, day_obs // 100 % 100, day_obs % 100, 12, tzinfo=dt.UTC)
    minutes = noon.timestamp() + TAI_MINUS_UTC + 60.0 * np.arange(1440)
    dark = minutes[sun_altitude(minutes) < ASTRONOMICAL_TWILIGHT]
    return float(dark[0]), float(dark[-1])


def galactic_latitude(ra: ArrayLike, dec: ArrayLike) -> Floats:
    """Deg."""
    return _latitude(ra, dec, *_GALACTIC_POLE)


def ecliptic_latitude(ra: ArrayLike, dec: ArrayLike) -> Floats:
    """Deg, ecliptic of J2000."""
    return _latitude(ra, dec, 270.0, 90.0 - _OBLIQUITY)


def _latitude(ra: ArrayLike, dec: ArrayLike, pole_ra: Floats | float, pole_dec: float) -> Floats:
    """90 deg less the distance from a pole."""
    a = np.radians(np.asarray(ra, dtype=np.float64) - pole_ra)
    d = np.radians(np.asarray(dec, dtype=np.float64))
    pole = np.radians(pole_dec)
    sine = np.sin(d) * np.sin(pole) + np.cos(d) * np.cos(pole) * np.cos(a)
    latitude: Floats = np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0)))
    return latitude


def _days(tai: Floats) -> Floats:
    """UTC days since J2000."""
    return (tai - TAI_MINUS_UTC - _J2000_UNIX) / 86400.0


def _sidereal_time(tai: Floats) -> Floats:
    """Mean local sidereal time, deg, taking UT1 as UTC."""
    return 280.46061837 + 360.98564736629 * _days(tai) + LONGITUDE


def _sun(tai: Floats) -> tuple[Floats, Floats]:
    """Right ascension and declination of date, deg."""
    n = _days(tai)
    anomaly = np.radians(357.528 + 0.9856003 * n)
    longitude = np.radians(280.460 + 0.9856474 * n + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2.0 * anomaly))
    obliquity = np.radians(23.439 - 4e-7 * n)
    ra = np.degrees(np.arctan2(np.cos(obliquity) * np.sin(longitude), np.cos(longitude)))
    dec = np.degrees(np.arcsin(np.sin(obliquity) * np.sin(longitude)))
    return ra, dec


def _wrap(angle: Floats) -> Floats:
    """Into -180..180."""
    return np.mod(angle + 180.0, 360.0) - 180.0

"""Two-body motion about the Sun as seen from Rubin Observatory, with light time.

Positions are heliocentric, au, along the axes of the ICRS; elements are of the ecliptic and equinox of J2000
with the obliquity of the IAU 1976 system, as the Minor Planet Center's are. Directions are astrometric: light
time is taken into account, aberration and deflection are not.
"""

from functools import lru_cache

import erfa
import numba
import numpy as np

from schemas.clock import TAI_MINUS_UTC
from simulators.sky.sources import Floats

GAUSS_K = 0.01720209895
"""Gauss' constant, rad/day at 1 au (IAU 1976): GM of the Sun is its square."""

LIGHT_DAYS_PER_AU = 499.004783836 / 86400.0
TT_MINUS_TAI_DAYS = 32.184 / 86400.0

_OBLIQUITY = np.radians(84381.448 / 3600.0)
_AU_M = 1.495978707e11
_RUBIN_LONGITUDE, _RUBIN_LATITUDE, _RUBIN_HEIGHT = np.radians(-70.749417), np.radians(-30.244639), 2663.0


def motions(a: Floats, e: Floats, angles: Floats, mean_anomaly: Floats) -> Floats:
    """Elements in the form that `seen_from` takes: (n, 9).

    `a`: au; `e` < 1; `angles`: (3, n) inclination, node, argument of perihelion, deg; `mean_anomaly`: deg at
    the epoch. Columns: e, mean anomaly (rad), mean motion (rad/day), a * (towards perihelion), b * (a quarter
    turn on).
    """
    inclination, node, argument = np.radians(angles)
    (cn, sn), (cw, sw) = (np.cos(node), np.sin(node)), (np.cos(argument), np.sin(argument))
    ci, si = np.cos(inclination), np.sin(inclination)
    perihelion = np.stack([cn * cw - sn * sw * ci, sn * cw + cn * sw * ci, sw * si])
    quarter = np.stack([-cn * sw - sn * cw * ci, -sn * sw + cn * cw * ci, cw * si])
    c, s = np.cos(_OBLIQUITY), np.sin(_OBLIQUITY)
    to_equator = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    b = a * np.sqrt(1.0 - e * e)
    scalars = np.stack([e, np.radians(mean_anomaly), GAUSS_K * a**-1.5])
    return np.ascontiguousarray(np.vstack([scalars, a * (to_equator @ perihelion), b * (to_equator @ quarter)]).T)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def seen_from(motion: Floats, days: float, observer: Floats) -> tuple[Floats, Floats]:
    """Where bodies appear `days` after their epoch.

    `motion`: (n, 9) as `motions` makes it; `observer`: (3,), heliocentric, au. Returns the vectors from the
    observer to where each body was when its light left, (n, 3), and its distance from the Sun then, (n,); au.
    """
    n = motion.shape[0]
    towards, from_sun = np.empty((n, 3)), np.empty(n)
    for i in range(n):
        e, rate = motion[i, 0], motion[i, 2]
        start = (motion[i, 1] + rate * days) % (2.0 * np.pi)
        anomaly = start + e * np.sin(start) * (1.0 + e * np.cos(start))
        delay = 0.0
        for _ in range(3):  # light time contracts by v/c = 1e-4 an iteration: converged to 1e-12 days
            mean = start - rate * delay
            for _ in range(20):
                step = (anomaly - e * np.sin(anomaly) - mean) / (1.0 - e * np.cos(anomaly))
                anomaly -= step
                if abs(step) < 1e-9:  # Newton's error squares: the next step would be below rounding
                    break
            c, s = np.cos(anomaly) - e, np.sin(anomaly)
            x = c * motion[i, 3] + s * motion[i, 6]
            y = c * motion[i, 4] + s * motion[i, 7]
            z = c * motion[i, 5] + s * motion[i, 8]
            dx, dy, dz = x - observer[0], y - observer[1], z - observer[2]
            delay = LIGHT_DAYS_PER_AU * np.sqrt(dx * dx + dy * dy + dz * dz)
        towards[i, 0], towards[i, 1], towards[i, 2] = dx, dy, dz
        from_sun[i] = np.sqrt(x * x + y * y + z * z)
    return towards, from_sun


@lru_cache(maxsize=64)
def observatory(mjd_tai: float) -> Floats:
    """Rubin Observatory, heliocentric, (3,) au.

    The Earth after Simon et al. 1994 as in ERFA's `epv00`: 11 km at most from JPL's DE405. UT1 is taken as
    UTC (0.9 s).
    """
    tt = mjd_tai + TT_MINUS_TAI_DAYS
    utc = mjd_tai - TAI_MINUS_UTC / 86400.0
    heliocentric, _ = erfa.epv00(erfa.DJM0, tt)
    celestial_to_terrestrial = erfa.c2t06a(erfa.DJM0, tt, erfa.DJM0, utc, 0.0, 0.0)
    site = erfa.gd2gc(erfa.WGS84, _RUBIN_LONGITUDE, _RUBIN_LATITUDE, _RUBIN_HEIGHT)
    position: Floats = heliocentric["p"] + celestial_to_terrestrial.T @ site / _AU_M
    position.flags.writeable = False
    return position

"""Where the observatory is among the planets."""

from dataclasses import dataclass

import erfa
import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.clock import TAI_MINUS_UTC

Floats = NDArray[np.float64]

LONGITUDE, LATITUDE, HEIGHT = -70.749417, -30.244639, 2663.0
"""Rubin Observatory on Cerro Pachon: deg east, deg north, m (WGS84)."""
AU_KM = 149597870.7
TT_MINUS_TAI = 32.184 / 86400.0
"""Days."""
_MJD0 = 2400000.5


@dataclass(frozen=True, eq=False)
class Observer:
    """Position (au) and velocity (au/day) of the observatory, (..., 3), ICRS axes, from the Sun's centre.

    `sun_velocity`: of the Sun about the Solar System's barycentre.
    """

    position: Floats
    velocity: Floats
    sun_velocity: Floats


def observer_at(mjd_tai: ArrayLike) -> Observer:
    """The observatory at times (MJD TAI).

    Earth after `erfa.epv00` (Simon & Bretagnon; 10 km, 14 mas at 1 au); the site turned with the Earth by
    IAU 2006 precession-nutation and sidereal time, with UT1 = UTC (0.9 s, 0.4 km) and no polar motion. TDB
    is taken as TT.
    """
    tt = np.asarray(mjd_tai, dtype=np.float64) + TT_MINUS_TAI
    earth, earth_barycentric = erfa.epv00(_MJD0, tt)
    site, site_velocity = _site(tt)
    return Observer(
        earth["p"] + site, earth["v"] + site_velocity, earth_barycentric["v"] - earth["v"]
    )  # fmt: skip


def _site(tt: Floats) -> tuple[Floats, Floats]:
    """Au and au/day from the Earth's centre, ICRS axes."""
    ut = tt - TT_MINUS_TAI - TAI_MINUS_UTC / 86400.0
    sidereal = erfa.gst06a(_MJD0, ut, _MJD0, tt)
    turned = erfa.pvtob(np.radians(LONGITUDE), np.radians(LATITUDE), HEIGHT, 0.0, 0.0, 0.0, sidereal)
    to_icrs = np.swapaxes(erfa.pnm06a(_MJD0, tt), -1, -2)
    position = np.squeeze(to_icrs @ turned["p"][..., None], -1) / (AU_KM * 1e3)
    velocity = np.squeeze(to_icrs @ turned["v"][..., None], -1) * 86400.0 / (AU_KM * 1e3)
    return position, velocity

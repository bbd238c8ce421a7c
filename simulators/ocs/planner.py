"""Where to point: a small planner, after the habits of the survey's scheduler.

Blocks of two neighbouring fields, each visited three times in turns, one in r, the other in i, so that what
changes is seen again in its own band; within 3 h of the meridian, out of the Milky Way, near the ecliptic
where possible so that asteroids appear, and a short slew from the block before.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from schemas.wcs import separation_arcsec
from simulators.ocs import site

_FILTERS = ("r_57", "i_39")
_FIELDS, _VISITS_PER_FIELD = len(_FILTERS), 3
_BLOCK = _FIELDS * _VISITS_PER_FIELD
_SPACING_DEG, _MAX_HOUR_ANGLE, _MIN_GALACTIC = 3.0, 45.0, 20.0
_SOUTH, _NORTH = -60.0, 5.0
_NEAR_ECLIPTIC, _NEAR_SLEW = 8.0, 8.0
_MAX_TURN = 4.0
_DITHER_ARCSEC = 3.0, 60.0


class Pointing(NamedTuple):
    """Boresight and position angle of the focal plane's +y (deg, ICRS), and the filter."""

    ra: float
    dec: float
    rotation: float
    physical_filter: str


def pointings(rng: np.random.Generator, n: int, start: float, cadence: float) -> list[Pointing]:
    """`n` pointings from `start` (TAI s), one every `cadence` s.

    Visits of a field differ by 3 to 60 arcsec and by up to 4 deg of rotation from its centre and angle.
    """
    ra, dec = _field_grid()
    chosen: list[int] = []
    for begin in range(0, n, _BLOCK):
        chosen += _next_block(rng, ra, dec, chosen, start + (begin + _BLOCK / 2) * cadence)
    fields = [
        Pointing(float(ra[field]), float(dec[field]), rng.uniform(0.0, 360.0), _FILTERS[number % _FIELDS])
        for number, field in enumerate(chosen)
    ]
    return [dithered(rng, fields[i // _BLOCK * _FIELDS + i % _FIELDS]) for i in range(n)]


def _field_grid() -> tuple[site.Floats, site.Floats]:
    """Centres (RA, dec, deg) on rings of declination, about 3 deg apart."""
    decs = np.arange(_SOUTH + _SPACING_DEG / 2, _NORTH, _SPACING_DEG)
    counts = (360.0 / _SPACING_DEG * np.cos(np.radians(decs))).astype(int)
    ra = np.concatenate([np.arange(count) * 360.0 / count for count in counts])
    return ra, np.repeat(decs, counts)


def _next_block(
    rng: np.random.Generator, ra: site.Floats, dec: site.Floats, done: Sequence[int], tai: float
) -> list[int]:
    """Indices of the neighbouring fields to observe about `tai` (s), none of them `done`."""
    good = np.abs(site.hour_angle(ra, tai)) < _MAX_HOUR_ANGLE
    good &= np.abs(site.galactic_latitude(ra, dec)) > _MIN_GALACTIC
    good[list(done)] = False
    weight = np.exp(-0.5 * (site.ecliptic_latitude(ra, dec) / _NEAR_ECLIPTIC) ** 2) + 1e-3
    if done:
        slew = separation_arcsec(ra, dec, ra[done[-1]], dec[done[-1]]) / 3600.0
        weight *= np.exp(-0.5 * (slew / _NEAR_SLEW) ** 2) + 1e-9
    first = rng.choice(ra.size, p=weight * good / np.sum(weight * good))
    distance = np.where(good, separation_arcsec(ra, dec, ra[first], dec[first]), np.inf)
    return [int(index) for index in np.argsort(distance)[:_FIELDS]]


def dithered(rng: np.random.Generator, field: Pointing) -> Pointing:
    """A visit of a field: 3 to 60 arcsec and up to 4 deg of rotation away."""
    radius, angle = np.exp(rng.uniform(*np.log(_DITHER_ARCSEC))) / 3600.0, rng.uniform(0.0, 2.0 * np.pi)
    ra = field.ra + radius * np.cos(angle) / np.cos(np.radians(field.dec))
    rotation = field.rotation + rng.uniform(-_MAX_TURN, _MAX_TURN)
    dec = field.dec + radius * np.sin(angle)
    return Pointing(float(ra % 360.0), float(dec), rotation % 360.0, field.physical_filter)

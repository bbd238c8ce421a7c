"""Minor planets in a field: found among all by a table of the day, then placed exactly."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from schemas.instrument import BANDS
from schemas.tables import Table
from simulators.sky.kepler import GAUSS_K, TT_MINUS_TAI_DAYS, motions, observatory, seen_from
from simulators.sky.population import EPOCH_MJD, SLOPE_G, draw_population
from simulators.sky.sources import SKY_SOURCE_DTYPE, Floats, Kind, nanojansky, source_ids

FAINTEST_V = 25.5
"""Bodies fainter than this are not shown: a fifth of a visit's noise in r."""

_OBSERVER_SPEED = 0.0180  # au/day: more than the Earth's at perihelion and its rotation
_RATE_SECONDS = 60.0  # baseline of the rates

# V less the magnitude in u..y, C-like and S-like: after Veres & Chesley (2017, AJ 154, 12), rounded.
_V_MINUS_BAND = np.array([[-1.5, -0.3, 0.2, 0.3, 0.3, 0.3], [-1.8, -0.4, 0.3, 0.5, 0.4, 0.4]])


@dataclass(frozen=True, eq=False)
class _DayTable:
    """Unit vectors (n, 3) at a day's middle, and how far (rad) each can appear from there that day."""

    direction: Floats
    reach: Floats


class Asteroids:
    """The bodies of a seed. Drawing them takes half a second, a new MJD (TAI) day's first field a fifth."""

    def __init__(self, seed: int) -> None:
        self.bodies = draw_population(seed)
        """BODY_DTYPE."""
        elements = self.bodies
        angles = np.stack([elements[name] for name in ("i", "node", "argperi")])
        self._motions = motions(elements["a"], elements["e"], angles, elements["mean_anomaly"])
        self._fastest = GAUSS_K * np.sqrt((1.0 + elements["e"]) / (elements["a"] * (1.0 - elements["e"])))
        self._ids = source_ids(Kind.ASTEROID, len(elements))
        self._day = lru_cache(maxsize=2)(self._table_of)

    def within(self, ra: float, dec: float, radius_deg: float, band: str, mjd_tai: float) -> Table:
        """Bodies (SKY_SOURCE_DTYPE) brighter than V = 25.5 in a circle (deg), by the H, G system."""
        center, radius = _unit(ra, dec), np.radians(radius_deg)
        chosen = self._candidates(center, radius, mjd_tai)
        observer = observatory(mjd_tai)
        towards, from_sun = seen_from(self._motions[chosen], _days(mjd_tai), observer)
        v_mag = self.bodies["h"][chosen] + _dimming(towards, from_sun, observer)
        distance = np.linalg.norm(towards, axis=1)
        inside = np.linalg.norm(towards / distance[:, None] - center, axis=1) <= 2.0 * np.sin(radius / 2.0)
        shown = inside & (v_mag < FAINTEST_V)
        return self._rows(chosen[shown], towards[shown], v_mag[shown], band, mjd_tai)

    def _candidates(self, center: Floats, radius: float, mjd_tai: float) -> NDArray[np.int64]:
        """Numbers of the bodies that can be in a circle at a time, and few others."""
        day = self._day(int(np.floor(mjd_tai)))
        limit = np.minimum(day.reach + radius, np.pi)
        return np.flatnonzero(day.direction @ center >= np.cos(limit))

    def _table_of(self, day: int) -> _DayTable:
        middle = day + 0.5
        towards, _ = seen_from(self._motions, _days(middle), observatory(middle))
        distance = np.linalg.norm(towards, axis=1)
        travelled = 0.5 * 1.001 * (self._fastest + _OBSERVER_SPEED)  # the 0.001: light time changes too
        reach = np.where(travelled < distance, np.arcsin(np.minimum(travelled / distance, 1.0)), np.pi)
        return _DayTable(towards / distance[:, None], reach + 1e-7)

    def _rows(self, chosen: NDArray[np.int64], towards: Floats, v_mag: Floats, band: str, mjd_tai: float) -> Table:
        later = mjd_tai + _RATE_SECONDS / 86400.0
        moved, _ = seen_from(self._motions[chosen], _days(later), observatory(later))
        rows = np.zeros(len(chosen), SKY_SOURCE_DTYPE)
        rows["id"], rows["kind"], rows["axis_ratio"] = self._ids[chosen], Kind.ASTEROID, 1.0
        rows["ra"], rows["dec"] = _angles(towards)
        rows["rate_ra"], rows["rate_dec"] = _rates(towards, moved)
        colour = _V_MINUS_BAND[self.bodies["red"][chosen].astype(np.int64), BANDS.index(band)]
        rows["flux"] = nanojansky(v_mag - colour)
        return rows


def _days(mjd_tai: float) -> float:
    """Days from the elements' epoch."""
    return mjd_tai + TT_MINUS_TAI_DAYS - EPOCH_MJD


def _dimming(towards: Floats, from_sun: Floats, observer: Floats) -> Floats:
    """V - H: distance and phase, the H, G system (Bowell et al. 1989, Asteroids II, 524)."""
    distance = np.linalg.norm(towards, axis=1)
    cosine = np.sum((towards + observer) * towards, axis=1) / (distance * from_sun)
    half_tangent = np.tan(np.arccos(np.clip(cosine, -1.0, 1.0)) / 2.0)
    phi_1, phi_2 = np.exp(-3.33 * half_tangent**0.63), np.exp(-1.87 * half_tangent**1.22)
    phase = np.maximum((1.0 - SLOPE_G) * phi_1 + SLOPE_G * phi_2, 1e-30)
    dimming: Floats = 5.0 * np.log10(distance * from_sun) - 2.5 * np.log10(phase)
    return dimming


def _unit(ra: float, dec: float) -> Floats:
    """(3,) towards a position (deg)."""
    a, d = np.radians(ra), np.radians(dec)
    return np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])


def _angles(vectors: Floats) -> tuple[Floats, Floats]:
    """RA in [0, 360), dec (deg) of (n, 3) vectors."""
    x, y, z = vectors.T
    return np.mod(np.degrees(np.arctan2(y, x)), 360.0), np.degrees(np.arctan2(z, np.hypot(x, y)))


def _rates(towards: Floats, later: Floats) -> tuple[Floats, Floats]:
    """East and north motion on the sky (arcsec/s) between directions 60 s apart."""
    after, before = (v / np.linalg.norm(v, axis=1)[:, None] for v in (later, towards))
    change = after - before
    a, d = np.radians(_angles(towards))
    east = -np.sin(a) * change[:, 0] + np.cos(a) * change[:, 1]
    north = -np.sin(d) * (np.cos(a) * change[:, 0] + np.sin(a) * change[:, 1]) + np.cos(d) * change[:, 2]
    per_second = np.degrees(1.0) * 3600.0 / _RATE_SECONDS
    return east * per_second, north * per_second

"""Which known Solar System objects a visit sees, and where: two-body orbits from `mpc_orbits`.

Positions are astrometric (light time, no aberration), as a catalogue's stars give them. The planets' pull
is left out: it moves a main-belt asteroid by 0.14 arcsec (median) and 1.4 arcsec (99 %) in the 30 days
after the elements' epoch, measured against an integration with all planets, and grows as the time squared;
the match radius grows with it.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from payloads.alert_production.observatory import TT_MINUS_TAI, Observer, observer_at
from payloads.alert_production.table_checks import require_columns
from payloads.alert_production.two_body import GAUSS_K, in_plane, orbit_axes
from payloads.imaging.sphere import local_axes, unit_vectors
from schemas.errors import BadData
from schemas.identity import ss_object_id
from schemas.tables import EPHEMERIS_DTYPE, Table, nulls

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

LIGHT_AU_DAY = 173.14463267424034
"""Speed of light, au/day."""
MATCH_RADIUS_ARCSEC, DRIFT_ARCSEC_30D, MAX_RADIUS_ARCSEC = 1.0, 1.5, 10.0
_ELEMENTS = ("q", "e", "i", "node", "argperi", "peri_time")
_COLUMNS = ("designation", *_ELEMENTS, "epoch_mjd", "h", "g")
_DEFAULT_SLOPE = 0.15
_NIGHT_HALF_DAYS = 0.5
_SLOW_DEG = 0.5


@dataclass(frozen=True, eq=False)
class _Seen:
    """Orbits as seen: `rows` of the catalogue; au and au/day, ICRS axes, (n, 3) and (n,)."""

    rows: Indices
    offset: Floats
    velocity: Floats
    helio_range: Floats

    @property
    def topo_range(self) -> Floats:
        result: Floats = np.linalg.norm(self.offset, axis=1)
        return result


class OrbitCatalogue:
    """Orbits made ready to be predicted.

    `orbits`: rows of `mpc_orbits` (`q` au, angles deg, `peri_time` and `epoch_mjd` MJD TT). An orbit
    without six usable elements (NaN, q <= 0, e < 0) is left out, and so is a second one of a designation:
    `refused` names them. Raises BadData if a column is absent.
    """

    def __init__(self, orbits: Table) -> None:
        require_columns(orbits, _COLUMNS, "mpc_orbits")
        good = _usable(orbits)
        self.refused = tuple(str(name) for name in orbits["designation"][~good])
        self._orbits, self._rows = orbits, np.flatnonzero(good)
        self._ids = np.array([ss_object_id(str(name)) for name in orbits["designation"][good]], dtype=np.int64)
        self._row_of = dict(zip(self._ids.tolist(), self._rows.tolist(), strict=True))
        self._elements = _prepared(orbits[list(_ELEMENTS)][good])

    def __len__(self) -> int:
        return len(self._ids)

    def predict(self, ra: float, dec: float, radius_deg: float, mjd_tai: float) -> Table:
        """EPHEMERIS_DTYPE rows of what is within `radius_deg` of (`ra`, `dec`), deg ICRS, at `mjd_tai`."""
        return self._predict_rows(np.arange(len(self)), ra, dec, radius_deg, mjd_tai)

    def orbits_of(self, ss_object_ids: Indices) -> Table:
        """The `mpc_orbits` rows of objects, in the order of the ids. Raises BadData naming one without."""
        try:
            rows = [self._row_of[number] for number in ss_object_ids.tolist()]
        except KeyError as error:
            raise BadData(f"no orbit of the catalogue is of ssObjectId {error}") from error
        return self._orbits[rows]

    def _predict_rows(self, rows: Indices, ra: float, dec: float, radius_deg: float, mjd_tai: float) -> Table:
        observer, cos_radius = observer_at(mjd_tai), float(np.cos(np.radians(min(radius_deg, 180.0))))
        seen = self._seen(rows, unit_vectors(ra, dec), cos_radius, observer, mjd_tai)
        return self._table(seen, observer, mjd_tai)

    def _seen_anywhere(self, mjd_tai: float) -> _Seen:
        every, anywhere = np.arange(len(self)), -2.0
        return self._seen(every, unit_vectors(0.0, 0.0), anywhere, observer_at(mjd_tai), mjd_tai)

    def _seen(self, rows: Indices, center: Floats, cos_radius: float, observer: Observer, mjd_tai: float) -> _Seen:
        found: Indices
        found, states = _look(
            self._elements, rows, mjd_tai + TT_MINUS_TAI, observer.position, observer.velocity,
            observer.sun_velocity, center, cos_radius,
        )  # fmt: skip
        return _Seen(found, states[:, 0:3], states[:, 3:6], states[:, 6])

    def _table(self, seen: _Seen, observer: Observer, mjd_tai: float) -> Table:
        table = nulls(EPHEMERIS_DTYPE, len(seen.rows))
        orbits = self._orbits[self._rows[seen.rows]]
        table["ssObjectId"], table["designation"] = self._ids[seen.rows], orbits["designation"]
        _fill_sky(table, seen)
        helio = seen.offset + observer.position
        along = np.einsum("ij,ij->i", helio, seen.offset)
        cosine = along / (np.linalg.norm(helio, axis=1) * table["topo_range"])
        table["helio_range"], table["phase_angle"] = (
            seen.helio_range,
            np.degrees(np.arccos(np.clip(cosine, -1, 1))),
        )
        table["v_mag"] = apparent_magnitude(
            orbits["h"], orbits["g"], table["helio_range"], table["topo_range"], table["phase_angle"]
        )
        table["radius"] = _match_radius(mjd_tai - orbits["epoch_mjd"])
        return table


class Night:
    """A catalogue sorted over the sky for one night, so that a visit looks at those near its field only.

    Valid within half a day of `mjd_tai` (its middle). Objects that can move more than 0.5 deg in that time
    are looked at in every visit.
    """

    def __init__(self, catalogue: OrbitCatalogue, mjd_tai: float) -> None:
        self._catalogue, self._middle = catalogue, mjd_tai
        seen = catalogue._seen_anywhere(mjd_tai)  # noqa: SLF001 - this is the catalogue's index
        slow = _reach(seen) <= np.radians(_SLOW_DEG)
        self._fast, self._slow = seen.rows[~slow], seen.rows[slow]
        directions = seen.offset[slow] / seen.topo_range[slow][:, None]
        self._tree = cKDTree(directions) if len(directions) else None

    def covers(self, mjd_tai: float) -> bool:
        """Whether a time is of this night."""
        return abs(mjd_tai - self._middle) <= _NIGHT_HALF_DAYS

    def orbits_of(self, ss_object_ids: Indices) -> Table:
        """As `OrbitCatalogue.orbits_of`."""
        return self._catalogue.orbits_of(ss_object_ids)

    def predict(self, ra: float, dec: float, radius_deg: float, mjd_tai: float) -> Table:
        """As `OrbitCatalogue.predict`, the same rows. Raises BadData for a time not of this night."""
        if not self.covers(mjd_tai):
            raise BadData(f"MJD {mjd_tai} is not within {_NIGHT_HALF_DAYS} d of the night's middle, {self._middle}")
        rows = np.sort(np.concatenate([self._near(ra, dec, radius_deg + _SLOW_DEG), self._fast]))
        return self._catalogue._predict_rows(rows, ra, dec, radius_deg, mjd_tai)  # noqa: SLF001 - as above

    def _near(self, ra: float, dec: float, radius_deg: float) -> Indices:
        if self._tree is None:
            return np.zeros(0, dtype=np.int64)
        center = unit_vectors(ra, dec)
        chord = 2.0 * np.sin(np.radians(min(radius_deg, 180.0)) / 2.0)
        near: Indices = self._slow[np.asarray(self._tree.query_ball_point(center, chord), dtype=np.int64)]
        return near


def apparent_magnitude(h: ArrayLike, g: ArrayLike, helio: ArrayLike, topo: ArrayLike, phase_deg: ArrayLike) -> Floats:
    """V magnitude by H, G (Bowell et al. 1989, Asteroids II, 524); distances au; a missing G is 0.15."""
    tangent = np.tan(np.radians(np.minimum(phase_deg, 179.9)) / 2.0)
    phi1, phi2 = np.exp(-3.33 * tangent**0.63), np.exp(-1.87 * tangent**1.22)
    slope = np.where(np.isfinite(g), g, _DEFAULT_SLOPE)
    dimming = -2.5 * np.log10((1.0 - slope) * phi1 + slope * phi2)
    result: Floats = np.asarray(h) + 5.0 * np.log10(np.multiply(helio, topo)) + dimming
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _look(
    elements: Floats, rows: Indices, tt: float, position: Floats, velocity: Floats, sun: Floats,
    center: Floats, cos_radius: float,
) -> tuple[Indices, Floats]:  # fmt: skip
    """Those of `rows` in the field, and (n, 7) their offset, apparent velocity, heliocentric range.

    One solution of Kepler's equation at `tt` (MJD TT); the light time by a second-order step back from there.
    """
    found, states, count = np.empty(rows.size, np.int64), np.empty((rows.size, 7)), 0
    r, v, d = np.empty(3), np.empty(3), np.empty(3)
    for row in rows:
        x, y, vx, vy = in_plane(elements[row, 0], elements[row, 1], tt - elements[row, 2])
        pull = -GAUSS_K * GAUSS_K / (x * x + y * y) ** 1.5
        delay, distance, helio = 0.0, 0.0, 0.0
        for _ in range(3):
            bx = x - delay * (vx - 0.5 * delay * pull * x)
            by = y - delay * (vy - 0.5 * delay * pull * y)
            helio, square = np.sqrt(bx * bx + by * by), 0.0
            for k in range(3):
                r[k] = bx * elements[row, 3 + k] + by * elements[row, 6 + k]
                d[k] = r[k] - delay * sun[k] - position[k]
                square += d[k] * d[k]
            distance = np.sqrt(square)
            delay = distance / LIGHT_AU_DAY
        inside = d[0] * center[0] + d[1] * center[1] + d[2] * center[2] >= cos_radius * distance
        if not inside:  # nor is what has no place: NaN
            continue
        wx, wy = vx - delay * pull * x, vy - delay * pull * y
        towards, along = 0.0, 0.0
        for k in range(3):
            v[k] = wx * elements[row, 3 + k] + wy * elements[row, 6 + k]
            towards += d[k] * (v[k] - velocity[k]) / distance
            along += d[k] * (v[k] + sun[k]) / distance
        lag = towards / (LIGHT_AU_DAY + along)  # the light time's rate of change
        for k in range(3):
            states[count, k] = d[k]
            states[count, 3 + k] = v[k] * (1.0 - lag) - sun[k] * lag - velocity[k]
        states[count, 6], found[count] = helio, row
        count += 1
    return found[:count], states[:count]


def _usable(orbits: Table) -> NDArray[np.bool_]:
    good: NDArray[np.bool_] = np.all([np.isfinite(orbits[name]) for name in _ELEMENTS], axis=0)
    good &= (orbits["q"] > 0.0) & (orbits["e"] >= 0.0) & (orbits["designation"] != "")
    first = np.zeros(len(orbits), dtype=bool)
    first[np.unique(orbits["designation"], return_index=True)[1]] = True
    good &= first
    return good


def _prepared(orbits: Table) -> Floats:
    """(n, 9): q, e, time of perihelion (MJD TT), and the orbit's two axes."""
    axes = orbit_axes(*(np.radians(orbits[name]) for name in ("i", "node", "argperi")))
    return np.ascontiguousarray(np.column_stack([orbits["q"], orbits["e"], orbits["peri_time"], *axes]))


def _fill_sky(table: Table, seen: _Seen) -> None:
    """Position, rates and distance."""
    x, y, z = seen.offset.T
    table["ra"] = np.degrees(np.arctan2(y, x)) % 360.0
    table["dec"] = np.degrees(np.arctan2(z, np.hypot(x, y)))
    table["topo_range"] = seen.topo_range
    east, north = local_axes(table["ra"], table["dec"])
    for name, axis in (("rate_ra", east), ("rate_dec", north)):
        table[name] = np.degrees(np.einsum("ij,ij->i", seen.velocity, axis) / table["topo_range"])
    table["range_rate"] = np.einsum("ij,ij->i", seen.velocity, seen.offset) / table["topo_range"]


def _match_radius(days_from_epoch: Floats) -> Floats:
    """Arcsec: the detector's own error and what the planets may have done since the elements' epoch."""
    drift = DRIFT_ARCSEC_30D * (np.nan_to_num(days_from_epoch) / 30.0) ** 2
    result: Floats = np.minimum(MATCH_RADIUS_ARCSEC + drift, MAX_RADIUS_ARCSEC)
    return result


def _reach(seen: _Seen) -> Floats:
    """The greatest angle (rad) by which an object can leave its place in half a day.

    A straight line, widened by what the Sun's pull on it and on the Earth can bend and by the Earth's
    diameter.
    """
    days, distance = _NIGHT_HALF_DAYS, seen.topo_range
    radial = np.abs(np.einsum("ij,ij->i", seen.velocity, seen.offset)) / distance
    across = np.sqrt(np.maximum(np.einsum("ij,ij->i", seen.velocity, seen.velocity) - radial**2, 0.0))
    bend = GAUSS_K**2 * (1.0 / seen.helio_range**2 + 1.0) * days**2 + 2.0 * 6378.0 / 149597870.7
    result: Floats = np.arctan2(across * days + bend, distance - radial * days - bend)
    return result

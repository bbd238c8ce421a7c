"""SSSource rows: what is known of a Solar System object at the DIASource that is it."""

from collections.abc import Mapping

import erfa
import numpy as np
from numpy.typing import NDArray

from payloads.alert_production.ephemerides import LIGHT_AU_DAY
from payloads.alert_production.observatory import AU_KM, observer_at
from payloads.alert_production.two_body import OBLIQUITY
from payloads.imaging.sphere import local_axes, offsets_arcsec, unit_vectors
from schemas.tables import Table, empty

Floats = NDArray[np.float64]

_KM_S = AU_KM / 86400.0
"""km/s in an au/day."""


def ss_sources(sources: Table, ephemerides: Table, ranks: NDArray[np.int64]) -> Table:
    """`SSSource` rows of matched pairs: `DiaSource` rows, EPHEMERIS_DTYPE rows, distance ranks from 1.

    Ecliptic and galactic coordinates are those of the observed position, ranges and velocities those of the
    ephemeris; heliocentric ones leave out the Sun's own motion in the light time (2e-7 au).
    """
    table = empty("SSSource", len(sources))
    table["diaSourceId"], table["diaDistanceRank"] = sources["diaSourceId"], ranks
    table["ssObjectId"], table["designation"] = ephemerides["ssObjectId"], ephemerides["designation"]
    for columns in (_observed(sources), _predicted(ephemerides), _residuals(sources, ephemerides)):
        _put(table, columns)
    _put(table, _space(sources["midpointMjdTai"], ephemerides))
    return table


def _put(table: Table, columns: Mapping[str, Floats]) -> None:
    for name, values in columns.items():
        table[name] = values


def _observed(sources: Table) -> dict[str, Floats]:
    """Ecliptic (J2000) and galactic coordinates of what was seen, deg."""
    x, y, z = unit_vectors(sources["ra"], sources["dec"]).T
    c, s = np.cos(OBLIQUITY), np.sin(OBLIQUITY)
    longitude, latitude = np.arctan2(c * y + s * z, x), np.arcsin(np.clip(c * z - s * y, -1.0, 1.0))
    galactic = erfa.icrs2g(np.radians(sources["ra"]), np.radians(sources["dec"]))
    return {
        "eclLambda": np.degrees(longitude) % 360.0, "eclBeta": np.degrees(latitude),
        "galLon": np.degrees(galactic[0]) % 360.0, "galLat": np.degrees(galactic[1]),
    }  # fmt: skip


def _predicted(ephemerides: Table) -> dict[str, Floats]:
    return {
        "phaseAngle": ephemerides["phase_angle"], "topoRange": ephemerides["topo_range"],
        "ephRa": ephemerides["ra"], "ephDec": ephemerides["dec"], "ephVmag": ephemerides["v_mag"],
        "ephRate": np.hypot(ephemerides["rate_ra"], ephemerides["rate_dec"]),
        "ephRateRa": ephemerides["rate_ra"], "ephRateDec": ephemerides["rate_dec"],
    }  # fmt: skip


def _residuals(sources: Table, ephemerides: Table) -> dict[str, Floats]:
    """Observed less predicted, arcsec; across the track is positive 90 deg from the motion, east to north."""
    east, north = offsets_arcsec(sources["ra"], sources["dec"], ephemerides["ra"], ephemerides["dec"])
    rate = np.hypot(ephemerides["rate_ra"], ephemerides["rate_dec"])
    ux, uy = (np.divide(ephemerides[name], rate, where=rate > 0, out=np.full(len(rate), np.nan))
              for name in ("rate_ra", "rate_dec"))  # fmt: skip
    return {
        "ephOffset": np.hypot(east, north), "ephOffsetRa": east, "ephOffsetDec": north,
        "ephOffsetAlongTrack": east * ux + north * uy, "ephOffsetCrossTrack": north * ux - east * uy,
    }  # fmt: skip


def _space(mjd_tai: Floats, ephemerides: Table) -> dict[str, Floats]:
    """Positions (au) and velocities (km/s) about the observatory and the Sun, and the elongation (deg).

    The ephemeris's range rate is the apparent one, d(range)/d(time of observation): the light time's change
    is undone.
    """
    observer = observer_at(mjd_tai)
    direction = unit_vectors(ephemerides["ra"], ephemerides["dec"])
    east, north = local_axes(ephemerides["ra"], ephemerides["dec"])
    distance, radial = ephemerides["topo_range"][:, None], ephemerides["range_rate"][:, None]
    rates = np.radians(ephemerides["rate_ra"])[:, None] * east + np.radians(ephemerides["rate_dec"])[:, None] * north
    apparent = distance * rates + radial * direction
    topo, helio = distance * direction, distance * direction + observer.position
    helio_velocity = (apparent + observer.velocity) / (1.0 - radial / LIGHT_AU_DAY)
    topo_velocity = helio_velocity - observer.velocity
    helio_range = np.linalg.norm(helio, axis=1)
    sunward = np.sum(-observer.position * direction, axis=1) / np.linalg.norm(observer.position, axis=-1)
    return {
        "helioRange": ephemerides["helio_range"],
        "helioRangeRate": np.sum(helio * helio_velocity, axis=1) / helio_range * _KM_S,
        "topoRangeRate": np.sum(direction * topo_velocity, axis=1) * _KM_S,
        "elongation": np.degrees(np.arccos(np.clip(sunward, -1.0, 1.0))),
        **_cartesian("helio", helio, helio_velocity), **_cartesian("topo", topo, topo_velocity),
    }  # fmt: skip


def _cartesian(center: str, position: Floats, velocity: Floats) -> dict[str, Floats]:
    columns = {f"{center}_{axis}": position[:, k] for k, axis in enumerate("xyz")}
    columns |= {f"{center}_v{axis}": velocity[:, k] * _KM_S for k, axis in enumerate("xyz")}
    return columns | {f"{center}_vtot": np.linalg.norm(velocity, axis=1) * _KM_S}

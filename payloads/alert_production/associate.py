"""Which known object each DIASource is: Solar System objects first, then DIAObjects, one to one.

Pairs are taken in order of likelihood, each source and each object once, so that every pair taken is the
best that either still has (a stable matching). A source that is neither becomes a new DIAObject that bears
its number: the same sources give the same objects, however often they are associated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from payloads.alert_production.ss_sources import ss_sources
from payloads.alert_production.table_checks import require_columns, require_positions, require_unique
from payloads.imaging.sphere import unit_vectors
from schemas.tables import EPHEMERIS_DTYPE, Table, empty
from schemas.wcs import separation_arcsec

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

MATCH_RADIUS_ARCSEC = 1.0
ASTROMETRIC_FLOOR_ARCSEC = 0.05
"""Added in quadrature to a pair's position errors: the absolute astrometry required (DMS-REQ-0030)."""
UNKNOWN_ERROR_ARCSEC = 0.1
"""Taken for a position whose error is not known."""
_POSITION = ("ra", "dec", "raErr", "decErr", "ra_dec_Cov")


@dataclass(frozen=True, eq=False)
class Association:
    """`sources`: a copy, each row with one of `diaObjectId` and `ssObjectId` set and the other 0.

    `updated_ids`: int64, the objects known that got a source, in their order. `new_objects`: `DiaObject` rows of the
    others, which have an id and a position only (`dia_objects.update` does the rest). `ss_sources`: an `SSSource`
    row for each source that is a Solar System object.
    """

    sources: Table
    new_objects: Table
    ss_sources: Table
    updated_ids: Indices


def associate(sources: Table, objects: Table, ephemerides: Table) -> Association:
    """Give every DIASource of a visit-detector its object.

    `sources`: `DiaSource` rows. `objects`: ids and places of the field's, as of their valid versions (`DiaObjectLast`).
    `ephemerides`: EPHEMERIS_DTYPE at the sources' time; `radius` under 1 arcsec counts as 1. DIAObjects
    match within 1 arcsec, by the likelihood of the offset given both position errors (Sutherland & Saunders
    1992, MNRAS 259, 413).

    Raises BadData naming the row for a position that is none or an id that comes twice, or a column that
    lacks.
    """
    _check(sources, objects, ephemerides)
    result = sources.copy()
    result["diaObjectId"], result["ssObjectId"] = 0, 0
    moving, predicted, ranks = _match_moving(sources, ephemerides)
    result["ssObjectId"][moving] = ephemerides["ssObjectId"][predicted]
    still = np.setdiff1d(np.arange(len(sources)), moving)
    mine, known = _match_still(sources[still], objects)
    result["diaObjectId"][still[mine]] = objects["diaObjectId"][known]
    fresh = np.setdiff1d(still, still[mine])
    result["diaObjectId"][fresh] = sources["diaSourceId"][fresh]
    return Association(
        sources=result, new_objects=_new_objects(sources[fresh]), updated_ids=objects["diaObjectId"][np.sort(known)],
        ss_sources=ss_sources(sources[moving], ephemerides[predicted], ranks),
    )  # fmt: skip


def _check(sources: Table, objects: Table, ephemerides: Table) -> None:
    names = {"diaObjectId": "DiaObject", "diaSourceId": "DiaSource", "ssObjectId": "ephemeris"}
    tables = {"diaSourceId": sources, "diaObjectId": objects, "ssObjectId": ephemerides}
    needed: dict[str, Sequence[str]] = {
        "diaSourceId": ("diaSourceId", "diaObjectId", "ssObjectId", "midpointMjdTai", *_POSITION),
        "diaObjectId": ("diaObjectId", *_POSITION), "ssObjectId": EPHEMERIS_DTYPE.names or (),
    }  # fmt: skip
    for key, table in tables.items():
        require_columns(table, needed[key], f"the {names[key]} table")
        require_unique(table, key, f"the {names[key]} table")
        require_positions(table, key, names[key])


def _match_moving(sources: Table, ephemerides: Table) -> tuple[Indices, Indices, NDArray[np.int64]]:
    """Rows of sources and of ephemerides that are one, nearest first, and the source's rank in closeness."""
    radius = np.maximum(np.nan_to_num(ephemerides["radius"]), MATCH_RADIUS_ARCSEC)
    source, eph, separation = _pairs(sources, ephemerides, radius)
    order = np.lexsort((ephemerides["ssObjectId"][eph], sources["diaSourceId"][source], separation))
    first, second = _one_to_one(source, eph, order)
    ranks = [
        1 + np.count_nonzero((eph == e) & (separation < separation[(eph == e) & (source == s)][0]))
        for s, e in zip(first, second, strict=True)
    ]
    return first, second, np.array(ranks, dtype=np.int64)


def _match_still(sources: Table, objects: Table) -> tuple[Indices, Indices]:
    """Rows of sources and of objects that are one."""
    source, known, separation = _pairs(sources, objects, np.full(len(objects), MATCH_RADIUS_ARCSEC))
    variance = _variance(sources)[source] + _variance(objects)[known] + ASTROMETRIC_FLOOR_ARCSEC**2
    # -2 ln of the offset's density: a vague position gains nothing by being near everything
    cost = separation**2 / variance + 2.0 * np.log(variance)
    order = np.lexsort((objects["diaObjectId"][known], sources["diaSourceId"][source], cost))
    return _one_to_one(source, known, order)


def _variance(table: Table) -> Floats:
    """Of a position along either axis, arcsec**2."""
    variance = (table["raErr"].astype(float) ** 2 + table["decErr"].astype(float) ** 2) / 2.0 * 3600.0**2
    return np.where(np.isfinite(variance), variance, UNKNOWN_ERROR_ARCSEC**2)


def _pairs(first: Table, second: Table, radius_arcsec: Floats) -> tuple[Indices, Indices, Floats]:
    """Rows of `first` and of `second` within the radius of the second, and how far apart they are, arcsec."""
    if not len(first) or not len(second):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    tree = cKDTree(unit_vectors(first["ra"], first["dec"]))
    chords = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0) * (1.0 + 1e-6)
    lists = tree.query_ball_point(unit_vectors(second["ra"], second["dec"]), chords)
    a = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in lists])
    b = np.repeat(np.arange(len(second)), [len(rows) for rows in lists])
    apart = separation_arcsec(first["ra"][a], first["dec"][a], second["ra"][b], second["dec"][b])
    near = apart <= radius_arcsec[b]
    return a[near], b[near], apart[near]


def _one_to_one(first: Indices, second: Indices, order: Indices) -> tuple[Indices, Indices]:
    """Of all pairs those taken in `order` (by cost, then by ids, never by rows), each row once."""
    taken: tuple[set[int], set[int]] = set(), set()
    kept = []
    for pair in order.tolist():
        a, b = int(first[pair]), int(second[pair])
        if a not in taken[0] and b not in taken[1]:
            taken[0].add(a)
            taken[1].add(b)
            kept.append(pair)
    return first[kept], second[kept]


def _new_objects(sources: Table) -> Table:
    table = empty("DiaObject", len(sources))
    table["diaObjectId"] = sources["diaSourceId"]
    for name in _POSITION:
        table[name] = sources[name]
    return table

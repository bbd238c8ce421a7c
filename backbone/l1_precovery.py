"""Precovery in the L1 database: what is new in a night, which visits looked there before, and rows of forced sources.

The rows come behind those that a visit-detector has already: `visit_detector.dia_forced_sources` counts them, and so
tells the next number. Count, rows, and the places that had no usable pixels are one transaction.
"""

import datetime as dt
from dataclasses import dataclass

import asyncpg
import numpy as np

from backbone import l1_rows, l1_schema, l1_tables
from backbone.l1 import Ids
from backbone.pg_tables import make_lacking
from schemas.clock import tai_from_mjd
from schemas.errors import BadData
from schemas.events import NextVisit
from schemas.identity import (
    MAX_SEQ_NUM,
    MAX_SOURCES,
    day_obs_of_visit,
    dia_forced_source_id,
    dia_source_id,
    dia_source_ids_of,
    exposure_id,
)
from schemas.tables import Table

NEW_OBJECT_DTYPE = np.dtype([("diaObjectId", "i8"), ("ra", "f8"), ("dec", "f8"), ("first", "f8")])
"""Deg ICRS; MJD TAI of the first DIASource that was not withdrawn."""

_NEW_OBJECTS = """
SELECT o."diaObjectId", o.ra, o.dec, seen.first FROM "DiaObjectLast" o, LATERAL (
    SELECT min(s."midpointMjdTai") AS first FROM "DiaSource" s WHERE s."diaObjectId" = o."diaObjectId"
    AND s."timeWithdrawnMjdTai" IS NULL AND s."diaSourceId" >= $1) AS seen
WHERE o."diaObjectId" BETWEEN $1 AND $2 AND seen.first IS NOT NULL ORDER BY o."diaObjectId"
"""
"""A DIAObject bears the number of its first DIASource, which begins with the night."""

_VISITS = """
WITH stored AS (
    SELECT visit, grp, max(readout_ended) AS ended, array_agg(detector ORDER BY detector) AS detectors
    FROM visit_detector WHERE visit >= $1 AND readout_ended >= $2 AND readout_ended < $3 GROUP BY visit, grp)
SELECT visit, ended, detectors, payload FROM stored LEFT JOIN journal j ON j.grp = stored.grp AND j.kind = 'NextVisit'
ORDER BY visit
"""

_MEASURED = """
SELECT detector, "diaObjectId" FROM "DiaForcedSource" WHERE visit = $1 AND "diaObjectId" = ANY ($2::bigint[])
UNION SELECT detector, dia_object FROM precovery_blank WHERE visit = $1 AND dia_object = ANY ($2::bigint[])
"""

_ROWS = """
SELECT "timeWithdrawnMjdTai" AS withdrawn FROM "DiaSource"
WHERE visit = $1 AND detector = $2 AND "diaSourceId" BETWEEN $3 AND $4
UNION ALL SELECT "timeWithdrawnMjdTai" FROM "DiaForcedSource" WHERE visit = $1 AND detector = $2
"""


@dataclass(frozen=True)
class StoredVisit:
    """A visit in the database: how it was announced, when it was read out (TAI s), which detectors are stored."""

    visit: int
    plan: NextVisit
    readout_ended: float
    detectors: tuple[int, ...]


async def ready(connection: asyncpg.Connection, where: str) -> None:
    """See that it is an L1 database, and make the tables that an older one lacks. Raises as `l1_tables.check`."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", l1_tables.LOCK)
        await l1_tables.check(connection, where)
        await make_lacking(connection, l1_schema.WITHDRAWAL_DDL + l1_schema.PRECOVERY_DDL)


async def last_night(connection: asyncpg.Connection) -> int:
    """The last night, YYYYMMDD, of which anything is stored. Raises BadData if nothing is."""
    visit = await connection.fetchval("SELECT max(visit) FROM visit_detector")
    if visit is None:
        raise BadData("nothing is stored in the L1 database")
    return day_obs_of_visit(visit)


async def new_objects(connection: asyncpg.Connection, day_obs: int) -> Table:
    """`NEW_OBJECT_DTYPE` rows of the valid DIAObjects first seen in a night, YYYYMMDD, by id.

    One of which every DIASource was withdrawn is left out. Raises BadData for a night that is no date.
    """
    first, last = exposure_id(_checked(day_obs), 0), exposure_id(day_obs, MAX_SEQ_NUM)
    least, most = dia_source_id(first, 0, 0), dia_source_id(last, 255, MAX_SOURCES - 1)
    rows = await connection.fetch(_NEW_OBJECTS, least, most)
    return np.array([tuple(row) for row in rows], NEW_OBJECT_DTYPE)


async def visits_between(connection: asyncpg.Connection, first_mjd: float, end_mjd: float) -> list[StoredVisit]:
    """Visits read out from one MJD (TAI) to before another, in order. Raises BadData for one never announced."""
    least = l1_rows.first_since("visit", first_mjd)
    rows = await connection.fetch(_VISITS, least, tai_from_mjd(first_mjd), tai_from_mjd(end_mjd))
    for row in rows:
        if row["payload"] is None:
            raise BadData(f"visit {row['visit']} is stored, and the journal has no NextVisit that says where it looked")
    return [
        StoredVisit(row["visit"], NextVisit.model_validate_json(row["payload"]), row["ended"], tuple(row["detectors"]))
        for row in rows
    ]


async def measured(connection: asyncpg.Connection, visit: int, object_ids: Ids) -> set[tuple[int, int]]:
    """(detector, diaObjectId) of those objects that have a DIAForcedSource in a visit, or are known to get none."""
    return {tuple(row) for row in await connection.fetch(_MEASURED, visit, object_ids.tolist())}


async def is_withdrawn(connection: asyncpg.Connection, visit: int, detector: int) -> bool:
    """Whether every row of a visit-detector was withdrawn; of one that has none, whether itself was."""
    query = f"""
        SELECT NOT EXISTS (SELECT FROM ({_ROWS}) AS r WHERE withdrawn IS NULL)
        AND (EXISTS ({_ROWS}) OR EXISTS (SELECT FROM withdrawn_whole WHERE visit = $1 AND detector = $2))"""  # noqa: S608
    return bool(await connection.fetchval(query, visit, detector, *dia_source_ids_of(visit, detector)))


async def store(connection: asyncpg.Connection, rows: Table, blank: Ids, *, visit: int, detector: int) -> int:
    """Add `DiaForcedSource` rows of a visit-detector, and note the objects that get none. Returns how many were added.

    The rows get their ids here. What was stored meanwhile stays as it is; to what was withdrawn meanwhile nothing is
    added. Raises BadData if the visit-detector is not stored, or has no numbers left.
    """
    async with connection.transaction():
        query = "SELECT dia_forced_sources FROM visit_detector WHERE visit = $1 AND detector = $2 FOR UPDATE"
        first = await connection.fetchval(query, visit, detector)
        if first is None:
            raise BadData(f"visit {visit} detector {detector} is not stored: it gets no DIAForcedSources")
        if await is_withdrawn(connection, visit, detector):
            return 0
        there = await measured(connection, visit, rows["diaObjectId"])
        added = rows[[(detector, known) not in there for known in rows["diaObjectId"].tolist()]]
        added["diaForcedSourceId"] = [dia_forced_source_id(visit, detector, first + n) for n in range(len(added))]
        await l1_rows.copy(connection, "DiaForcedSource", added)
        await connection.execute(
            "UPDATE visit_detector SET dia_forced_sources = $3 WHERE visit = $1 AND detector = $2",
            visit, detector, first + len(added),
        )  # fmt: skip
        await connection.execute(
            "INSERT INTO precovery_blank SELECT $1, $2, unnest($3::bigint[]) ON CONFLICT DO NOTHING",
            visit, detector, blank.tolist(),
        )  # fmt: skip
    return len(added)


def _checked(day_obs: int) -> int:
    try:
        dt.date(day_obs // 10_000, day_obs // 100 % 100, day_obs % 100)
    except ValueError as error:
        raise BadData(f"{day_obs} is not a night, YYYYMMDD") from error
    return day_obs

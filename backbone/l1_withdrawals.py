"""Taking back what is in the L1 database, and letting it count again.

Rows are marked, the DIAObjects that they touch are made anew of what stands, and what brokers must be told is noted,
in one transaction: no crash between the commit and the sending loses a notice. It stays owed, with its very bytes,
until it is marked as told.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import asyncpg
import numpy as np

from backbone import l1_connection, l1_rows, l1_tables, notices
from schemas.clock import Clock, mjd_from_tai
from schemas.errors import BadData
from schemas.identity import dia_source_ids_of
from schemas.tables import Table

_PRECOVERED_DAYS = 365.0
"""How long before an object's first source forced photometry can be: as far back as association looks."""

Remake = Callable[[Table, Table, Table, float], Table]
"""New versions of `DiaObject` rows of all their `DiaSource` and `DiaForcedSource` rows, valid from an MJD (TAI). Given
are rows that say how many sources stand; those returned say 0 of objects that have none left."""

_MARK = (
    'UPDATE "DiaSource" SET "timeWithdrawnMjdTai" = $1::float8'
    ' WHERE "diaSourceId" = ANY ($2::bigint[]) AND ("timeWithdrawnMjdTai" IS NULL) = $3::bool'
    ' RETURNING "diaSourceId", "diaObjectId", "ssObjectId", visit, detector, "midpointMjdTai"'
)
_MARK_FORCED = (
    'UPDATE "DiaForcedSource" SET "timeWithdrawnMjdTai" = $1::float8'
    " WHERE visit = $2 AND ($4::smallint IS NULL OR detector = $4)"
    ' AND ("timeWithdrawnMjdTai" IS NULL) = $3::bool RETURNING "diaObjectId", visit, detector'
)

_MARK_WHOLE = (
    "INSERT INTO withdrawn_whole SELECT visit, detector, $1 FROM visit_detector"
    " WHERE visit = $2 AND ($3::smallint IS NULL OR detector = $3) ON CONFLICT DO NOTHING"
)
_UNMARK_WHOLE = "DELETE FROM withdrawn_whole WHERE visit = $1 AND ($2::smallint IS NULL OR detector = $2)"

_HOLD = (
    "SELECT FROM visit_detector WHERE visit = $1 AND ($2::smallint IS NULL OR detector = $2)"
    " ORDER BY detector FOR UPDATE"
)
"""Precovery, which adds rows to visit-detectors, waits, and finds them withdrawn."""


@dataclass(frozen=True)
class Selection:
    """Some DIASources, or all rows of a visit, or of one of its detectors."""

    dia_sources: tuple[int, ...] = ()
    visit: int | None = None
    detector: int | None = None

    def __str__(self) -> str:
        """For messages."""
        if self.visit is None:
            return f"{len(self.dia_sources)} DIASources"
        return f"visit {self.visit}" + ("" if self.detector is None else f" detector {self.detector}")


@dataclass(frozen=True)
class Change:
    """What to withdraw and why, or, with `undo`, what to let count again.

    `superseded_by`: the DIASource that takes the place of the one withdrawn.
    """

    what: Selection
    reason: str
    undo: bool = False
    superseded_by: int | None = None

    @property
    def done(self) -> str:
        """For messages, and the kind of the notice."""
        return "reinstated" if self.undo else "withdrawn"


@dataclass(frozen=True)
class Changed:
    """How many rows were changed now, and how many DIASources had been before; how many DIAObjects were changed."""

    dia_sources: int
    dia_forced_sources: int
    before: int
    remade: int
    ended: int


@dataclass(frozen=True)
class Owed:
    """A notice that brokers have yet to get."""

    notice: str
    key: str
    value: str


def connected(dsn: str) -> AbstractAsyncContextManager[asyncpg.Connection]:
    """A connection to an L1 database.

    Raises Transient if the server does not answer, BadData if it holds no L1 database, or one that cannot note what is
    to be told, Broken if its tables are others.
    """
    return l1_connection.connected(dsn, _check)


async def _check(connection: asyncpg.Connection, where: str) -> None:
    await l1_tables.check(connection, where)
    if await connection.fetchval("SELECT to_regclass('withdrawal') IS NULL OR to_regclass('withdrawn_whole') IS NULL"):
        raise BadData(
            f"the L1 database at {where} has no table of withdrawals, for it was made before there was one:"
            " `pachon night --postgres` makes the table when it opens the database"
        )


async def change(connection: asyncpg.Connection, asked: Change, clock: Clock, remake: Remake) -> Changed:
    """Do what is asked, and note what is to be told. What is so already stays as it is.

    The objects of the rows changed get new versions; one that has lost its last source ends, and is valid again when
    one is reinstated. Raises BadData if there are no such rows; then nothing is changed.
    """
    async with connection.transaction():
        # Waits for what is being stored now; what is stored next finds the objects changed and is made anew.
        await connection.execute('LOCK TABLE "DiaObject" IN SHARE ROW EXCLUSIVE MODE')
        await connection.execute(_HOLD, asked.what.visit, asked.what.detector)
        mjd = mjd_from_tai(clock.now())
        found = await _found(connection, asked)
        await _check_successor(connection, asked)
        mark = None if asked.undo else mjd, found, not asked.undo
        marked = sorted(await connection.fetch(_MARK, *mark))
        forced = await _mark_forced(connection, asked, mjd)
        await _mark_whole(connection, asked, mjd)
        remade, ended = await _remake(connection, asked, marked, forced, mjd, remake)
        await _note(connection, _told(asked, marked, forced, mjd), mjd)
    return Changed(len(marked), len(forced), len(found) - len(marked), remade, ended)


async def owed(connection: asyncpg.Connection, limit: int) -> list[Owed]:
    """The first notices that no broker has acknowledged, those noted first before the others."""
    query = "SELECT notice, key, value FROM withdrawal WHERE told_at IS NULL ORDER BY noted_at, notice LIMIT $1"
    return [Owed(*row) for row in await connection.fetch(query, limit)]


async def mark_told(connection: asyncpg.Connection, names: Sequence[str], mjd: float) -> None:
    """Note that notices were acknowledged at an MJD (TAI)."""
    query = "UPDATE withdrawal SET told_at = $2 WHERE notice = ANY ($1::text[]) AND told_at IS NULL"
    await connection.execute(query, list(names), mjd)


async def _found(connection: asyncpg.Connection, asked: Change) -> list[int]:
    """The ids of what is selected, all of them there."""
    what = asked.what
    if what.visit is None:
        query = 'SELECT "diaSourceId" FROM "DiaSource" WHERE "diaSourceId" = ANY ($1::bigint[])'
        rows = await connection.fetch(query, list(what.dia_sources))
    else:
        query = 'SELECT "diaSourceId" FROM "DiaSource" WHERE "diaSourceId" BETWEEN $1 AND $2'
        rows = await connection.fetch(query, *dia_source_ids_of(what.visit, what.detector))
    found = [row["diaSourceId"] for row in rows]
    absent = sorted(set(what.dia_sources) - set(found))
    if absent:
        raise BadData(f"the L1 database has no DIASource {absent[0]}; nothing is {asked.done}")
    if not found and not await _is_stored(connection, what):
        raise BadData(f"the L1 database has no {what}; nothing is {asked.done}")
    return found


async def _is_stored(connection: asyncpg.Connection, what: Selection) -> bool:
    query = "SELECT EXISTS (SELECT FROM visit_detector WHERE visit = $1 AND ($2::smallint IS NULL OR detector = $2))"
    return what.visit is not None and bool(await connection.fetchval(query, what.visit, what.detector))


async def _check_successor(connection: asyncpg.Connection, asked: Change) -> None:
    """Raises BadData if what supersedes is not there or does not stand, or another was told before."""
    new = asked.superseded_by
    if new is None:
        return
    query = 'SELECT "diaSourceId", "timeWithdrawnMjdTai" FROM "DiaSource" WHERE "diaSourceId" = ANY ($1::bigint[])'
    since = dict(await connection.fetch(query, [new, *asked.what.dia_sources]))
    if new not in since:
        raise BadData(f"the L1 database has no DIASource {new} that could supersede another; nothing is withdrawn")
    if since[new] is not None:
        raise BadData(f"DIASource {new} is withdrawn itself and supersedes none; nothing is withdrawn")
    for old in asked.what.dia_sources:
        value = await connection.fetchval("SELECT value FROM withdrawal WHERE notice = $1", _name(old, since[old]))
        told = new if since[old] is None else json.loads(value or "{}").get("supersededBy")
        if told != new:
            raise BadData(f"DIASource {old} is withdrawn already, superseded by {told or 'none'}: --undo that first")


async def _mark_forced(connection: asyncpg.Connection, asked: Change, mjd: float) -> list[asyncpg.Record]:
    """The DIAForcedSources changed: those of a visit."""
    what = asked.what
    if what.visit is None:
        return []
    mark = None if asked.undo else mjd, what.visit, not asked.undo, what.detector
    return list(await connection.fetch(_MARK_FORCED, *mark))


async def _mark_whole(connection: asyncpg.Connection, asked: Change, mjd: float) -> None:
    """The visit-detectors of a visit; it has none where only DIASources are selected."""
    if asked.undo:
        await connection.execute(_UNMARK_WHOLE, asked.what.visit, asked.what.detector)
    else:
        await connection.execute(_MARK_WHOLE, mjd, asked.what.visit, asked.what.detector)


async def _remake(
    connection: asyncpg.Connection,
    asked: Change,
    marked: Sequence[asyncpg.Record],
    forced: Sequence[asyncpg.Record],
    mjd: float,
    remake: Remake,
) -> tuple[int, int]:
    """Make new versions of the objects of rows changed, end those without a source; how many of each."""
    changed = Counter(row["diaObjectId"] for row in marked if row["diaObjectId"])
    ids = sorted({*changed, *(row["diaObjectId"] for row in forced)})
    before = await l1_rows.latest_versions(connection, ids)
    _check_clock(before, asked, mjd)
    stood = np.where(np.isnan(before["validityEndMjdTai"]), before["nDiaSources"], 0)
    now = [changed[number] * (1 if asked.undo else -1) for number in before["diaObjectId"].tolist()]
    before["nDiaSources"] = np.maximum(stood + np.array(now, np.int64), 0)
    first = float(np.fmin.reduce([*before["firstDiaSourceMjdTai"], *(row["midpointMjdTai"] for row in marked), mjd]))
    sources = await l1_rows.read(connection, "DiaSource", *l1_rows.since("DiaSource", ids, first))
    since = l1_rows.since("DiaForcedSource", ids, first - _PRECOVERED_DAYS)
    made = remake(before, sources, await l1_rows.read(connection, "DiaForcedSource", *since), mjd)
    stand = made["nDiaSources"] > 0
    valid = np.where(np.isnan(before["validityEndMjdTai"]), before["validityStartMjdTai"], np.nan)
    await l1_rows.put_versions(connection, made[stand], valid[stand], str(asked.what))
    ended = await l1_rows.end_versions(connection, made["diaObjectId"][~stand].tolist(), mjd)
    return int(stand.sum()), len(ended)


def _check_clock(before: Table, asked: Change, mjd: float) -> None:
    """Raises BadData if the clock stands before what was made last."""
    if np.any(before["validityStartMjdTai"] > mjd):
        last = before[np.argmax(before["validityStartMjdTai"])]
        raise BadData(
            f"{asked.what}: the clock says MJD {mjd:.5f}, and DiaObject {last['diaObjectId']} was changed at"
            f" {last['validityStartMjdTai']:.5f}: ask with the folder of the latest night; nothing is {asked.done}"
        )


async def _note(connection: asyncpg.Connection, told: Sequence[Owed], mjd: float) -> None:
    rows = [(o.notice, o.key, o.value, mjd) for o in told]
    await connection.copy_records_to_table("withdrawal", records=rows, columns=["notice", "key", "value", "noted_at"])


def _told(asked: Change, marked: Sequence[asyncpg.Record], forced: Sequence[asyncpg.Record], mjd: float) -> list[Owed]:
    """One notice for a DIASource, one for the forced photometry of a visit-detector."""
    places = sorted(Counter((row["visit"], row["detector"]) for row in forced).items())
    return [_of_source(asked, row, mjd) for row in marked] + [
        _of_forced(asked, visit, detector, count, mjd) for (visit, detector), count in places
    ]


def _of_source(asked: Change, row: asyncpg.Record, mjd: float) -> Owed:
    fields = {
        "diaSourceId": row["diaSourceId"], "diaObjectId": row["diaObjectId"] or None,
        "ssObjectId": row["ssObjectId"] or None, "visit": row["visit"], "detector": row["detector"],
        "reason": asked.reason, **_when(asked, mjd),
    }  # fmt: skip
    if not asked.undo:
        fields["supersededBy"] = asked.superseded_by
    return Owed(_name(row["diaSourceId"], mjd, asked.done), str(row["visit"]), notices.text_of(asked.done, fields))


def _of_forced(asked: Change, visit: int, detector: int, count: int, mjd: float) -> Owed:
    fields = {
        "visit": visit, "detector": detector, "diaForcedSources": count, "reason": asked.reason, **_when(asked, mjd),
    }  # fmt: skip
    kind = f"forced_{asked.done}"
    return Owed(_name(f"{visit}/{detector}", mjd, kind), str(visit), notices.text_of(kind, fields))


def _when(asked: Change, mjd: float) -> dict[str, float]:
    return {"timeReinstatedMjdTai" if asked.undo else "timeWithdrawnMjdTai": mjd}


def _name(of: int | str, mjd: float | None, kind: str = "withdrawn") -> str:
    """Of a notice: what was withdrawn, reinstated, and withdrawn again has three."""
    return f"{kind}/{of}/{mjd!r}"

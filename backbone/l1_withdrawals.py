"""Taking back what is in the L1 database: rows are marked as withdrawn, and what brokers must be told is noted.

Both are one transaction, so that no crash between the commit and the sending loses a notice: it stays owed, with its
very bytes, until it is marked as told.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from backbone import notices
from schemas.errors import BadData, Transient

DEADLINE_S = 60.0
"""For one statement, wall seconds."""

_LOCK = 0x4C3157
"""Advisory lock ("L1W"): one process creates the table."""

_DDL = """
CREATE TABLE IF NOT EXISTS withdrawal (
    notice TEXT PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL, noted_at DOUBLE PRECISION NOT NULL,
    told_at DOUBLE PRECISION);
CREATE INDEX IF NOT EXISTS withdrawal_owed ON withdrawal (noted_at, notice) WHERE told_at IS NULL;
"""


@dataclass(frozen=True)
class Selection:
    """What to withdraw: some DIASources, or all rows of a visit, or of one of its detectors."""

    dia_sources: tuple[int, ...] = ()
    visit: int | None = None
    detector: int | None = None

    def __str__(self) -> str:
        """For messages."""
        if self.visit is None:
            return f"{len(self.dia_sources)} DIASources"
        return f"visit {self.visit}" + ("" if self.detector is None else f" detector {self.detector}")


@dataclass(frozen=True)
class Withdrawn:
    """How many rows were marked now, and how many DIASources had been before."""

    dia_sources: int
    dia_forced_sources: int
    before: int


@dataclass(frozen=True)
class Owed:
    """A notice that brokers have yet to get."""

    notice: str
    key: str
    value: str


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the database, with the table of withdrawals in it.

    Raises Transient if the server does not answer, BadData if it holds no L1 database.
    """
    where = dsn.rsplit("@", 1)[-1]
    try:
        connection = await asyncpg.connect(dsn, timeout=DEADLINE_S, command_timeout=DEADLINE_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Transient(f"the L1 database at {where} does not answer: {error}") from error
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(_DDL)
        yield connection
    except asyncpg.UndefinedTableError as error:
        raise BadData(f"the database at {where} is no L1 database: {error}") from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Transient(f"the L1 database at {where}: {error or type(error).__name__}") from error
    finally:
        await asyncio.wait_for(connection.close(), DEADLINE_S)


async def withdraw(connection: asyncpg.Connection, what: Selection, reason: str, mjd: float) -> Withdrawn:
    """Mark rows as withdrawn at an MJD (TAI), and note what is to be told. What is marked already stays as it is.

    Raises BadData if there are no such rows; then nothing is changed.
    """
    async with connection.transaction():
        found = await _found(connection, what)
        marked = await connection.fetch(
            'UPDATE "DiaSource" SET "timeWithdrawnMjdTai" = $1'
            ' WHERE "diaSourceId" = ANY ($2::bigint[]) AND "timeWithdrawnMjdTai" IS NULL'
            ' RETURNING "diaSourceId", "diaObjectId", "ssObjectId", visit, detector',
            mjd, found,
        )  # fmt: skip
        owed = [_of_source(row, reason, mjd) for row in sorted(marked)]
        forced = [] if what.visit is None else await _withdraw_forced(connection, what, mjd)
        owed += [_of_forced(visit, detector, count, reason, mjd) for visit, detector, count in forced]
        await connection.copy_records_to_table(
            "withdrawal", records=[(o.notice, o.key, o.value, mjd) for o in owed],
            columns=["notice", "key", "value", "noted_at"],
        )  # fmt: skip
    return Withdrawn(len(marked), sum(count for *_, count in forced), len(found) - len(marked))


async def owed(connection: asyncpg.Connection, limit: int) -> list[Owed]:
    """The first notices that no broker has acknowledged, those noted first before the others."""
    query = "SELECT notice, key, value FROM withdrawal WHERE told_at IS NULL ORDER BY noted_at, notice LIMIT $1"
    return [Owed(*row) for row in await connection.fetch(query, limit)]


async def mark_told(connection: asyncpg.Connection, names: Sequence[str], mjd: float) -> None:
    """Note that notices were acknowledged at an MJD (TAI)."""
    query = "UPDATE withdrawal SET told_at = $2 WHERE notice = ANY ($1::text[]) AND told_at IS NULL"
    await connection.execute(query, list(names), mjd)


async def _found(connection: asyncpg.Connection, what: Selection) -> list[int]:
    """The ids of what is selected, all of them there."""
    if what.visit is None:
        query = 'SELECT "diaSourceId" FROM "DiaSource" WHERE "diaSourceId" = ANY ($1::bigint[])'
        rows = await connection.fetch(query, list(what.dia_sources))
    else:
        query = 'SELECT "diaSourceId" FROM "DiaSource" WHERE visit = $1 AND ($2::smallint IS NULL OR detector = $2)'
        rows = await connection.fetch(query, what.visit, what.detector)
    found = [row["diaSourceId"] for row in rows]
    absent = sorted(set(what.dia_sources) - set(found))
    if absent:
        raise BadData(f"the L1 database has no DIASource {absent[0]}; nothing is withdrawn")
    if not found and not await _is_stored(connection, what):
        raise BadData(f"the L1 database has no {what}; nothing is withdrawn")
    return found


async def _is_stored(connection: asyncpg.Connection, what: Selection) -> bool:
    query = "SELECT EXISTS (SELECT FROM visit_detector WHERE visit = $1 AND ($2::smallint IS NULL OR detector = $2))"
    return what.visit is not None and bool(await connection.fetchval(query, what.visit, what.detector))


async def _withdraw_forced(connection: asyncpg.Connection, what: Selection, mjd: float) -> list[tuple[int, int, int]]:
    """(visit, detector, how many) of the DIAForcedSources marked."""
    rows = await connection.fetch(
        'WITH marked AS (UPDATE "DiaForcedSource" SET "timeWithdrawnMjdTai" = $1 WHERE visit = $2'
        ' AND ($3::smallint IS NULL OR detector = $3) AND "timeWithdrawnMjdTai" IS NULL RETURNING visit, detector)'
        " SELECT visit, detector, count(*) FROM marked GROUP BY visit, detector ORDER BY visit, detector",
        mjd, what.visit, what.detector,
    )  # fmt: skip
    return [tuple(row) for row in rows]


def _of_source(row: asyncpg.Record, reason: str, mjd: float) -> Owed:
    fields = {
        "diaSourceId": row["diaSourceId"], "diaObjectId": row["diaObjectId"] or None,
        "ssObjectId": row["ssObjectId"] or None, "visit": row["visit"], "detector": row["detector"],
        "reason": reason, "timeWithdrawnMjdTai": mjd,
    }  # fmt: skip
    name = f"withdrawn/{row['diaSourceId']}"
    return Owed(name, str(row["visit"]), notices.text_of("withdrawn", fields))


def _of_forced(visit: int, detector: int, count: int, reason: str, mjd: float) -> Owed:
    fields = {
        "visit": visit, "detector": detector, "diaForcedSources": count, "reason": reason,
        "timeWithdrawnMjdTai": mjd,
    }  # fmt: skip
    name = f"forced_withdrawn/{visit}/{detector}"
    return Owed(name, str(visit), notices.text_of("forced_withdrawn", fields))

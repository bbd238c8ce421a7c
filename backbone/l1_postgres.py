"""The L1 database in PostgreSQL."""

import asyncio
import datetime as dt
import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import asyncpg
import hpgeom
import numpy as np

from backbone import journal, l1_schema, pg_copy
from backbone.l1 import (
    ACKNOWLEDGEMENT_DTYPE,
    HEALPIX_NSIDE,
    Counts,
    Floats,
    Ids,
    Outbox,
    Stored,
    VisitDetectorResult,
    check_result,
    check_table,
    healpix_of,
    merged_acknowledgements,
    ordered,
)
from schemas.errors import BadData, Broken, Transient
from schemas.events import Event
from schemas.identity import MAX_SOURCES, dia_source_id
from schemas.tables import Table, dtype_of
from schemas.wcs import separation_arcsec

DEADLINE_S = 30.0
"""For one statement, or for a free connection, wall seconds."""

_MAX_CONNECTIONS = 4
_MJD_0, _FIRST_DAY = dt.date(1858, 11, 17).toordinal(), dt.date(2010, 1, 1).toordinal()
_DDL_LOCK = 0x4C31
"""Advisory lock ("L1"): one process creates the tables."""

_CONE_NSIDE = 2048
"""Cones are covered with pixels of 1.7 arcmin: few ranges to look up, few rows beyond the rim."""

_NO_ANSWER = (
    OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError, asyncpg.InsufficientResourcesError, asyncpg.TransactionRollbackError,
)  # fmt: skip

_CLOSE = """
WITH new AS (SELECT * FROM unnest($1::bigint[], $2::float8[]) AS n (id, start)),
same AS (
    DELETE FROM "DiaObject" o USING new
    WHERE o."diaObjectId" = id AND o."validityEndMjdTai" IS NULL AND o."validityStartMjdTai" = start
    RETURNING id),
closed AS (
    UPDATE "DiaObject" o SET "validityEndMjdTai" = start FROM new
    WHERE o."diaObjectId" = id AND o."validityEndMjdTai" IS NULL AND o."validityStartMjdTai" < start
    RETURNING id)
SELECT id FROM same UNION ALL SELECT id FROM closed
"""

_LATER = """
SELECT o."diaObjectId" FROM "DiaObject" o, unnest($1::bigint[], $2::float8[]) AS n (id, start)
WHERE o."diaObjectId" = id AND o."validityEndMjdTai" IS NULL AND o."validityStartMjdTai" > start LIMIT 1
"""


class L1Postgres:
    """`backbone.l1.L1Database` on a pool of connections."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._months: set[int] = set()

    @classmethod
    async def open(cls, dsn: str) -> "L1Postgres":
        """Connect, and make the tables if there are none.

        Raises Transient if the server does not answer, Broken if its tables are of another `apdb.yaml`.
        """
        where = dsn.rsplit("@", 1)[-1]
        try:
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=_MAX_CONNECTIONS, command_timeout=DEADLINE_S, timeout=DEADLINE_S
            )
        except (*_NO_ANSWER, asyncpg.PostgresError) as error:
            raise Transient(f"the L1 database at {where} does not answer: {error}") from error
        database = cls(pool)
        try:
            await database._create(where)
        except BaseException:
            pool.terminate()
            raise
        return database

    async def close(self) -> None:
        """Give the connections back."""
        await asyncio.wait_for(self._pool.close(), DEADLINE_S)

    async def _create(self, where: str) -> None:
        async with self._transaction(f"creating tables at {where}") as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _DDL_LOCK)
            if await connection.fetchval("SELECT to_regclass('visit_detector')") is None:
                await connection.execute(l1_schema.ddl())
            await connection.execute(journal.DDL)
            rows = await connection.fetch("SELECT name, value FROM metadata")
        found = dict(map(tuple, rows))
        version, layout = found.get(l1_schema.VERSION_KEY), found.get(l1_schema.LAYOUT_KEY)
        if version != l1_schema.schema_version():
            raise Broken(f"the L1 database at {where} has apdb {version}, this is for {l1_schema.schema_version()}")
        if layout != l1_schema.LAYOUT:
            raise Broken(f"the L1 database at {where} has layout {layout}, this is for {l1_schema.LAYOUT}")

    async def _make_room(self, visit: int) -> None:
        """The month of a visit and the one after, if this process has not seen to them yet."""
        month = l1_schema.month_of(visit)
        if month in self._months:
            return
        months = month, l1_schema.next_month(month)
        async with self._transaction(f"making room for {months[0]} and {months[1]}") as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _DDL_LOCK)
            for each in months:
                if await connection.fetchval("SELECT to_regclass($1)", f'"SSSource_{each}"') is None:
                    await connection.execute(l1_schema.month_ddl(each))
        self._months.add(month)

    @asynccontextmanager
    async def _connection(self, what: str) -> AsyncIterator[asyncpg.Connection]:
        """A connection; what the server says becomes one of our errors, naming `what` was asked."""
        try:
            async with self._pool.acquire(timeout=DEADLINE_S) as connection:
                yield connection
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name == l1_schema.CURRENT_OBJECT:
                raise Transient(f"{what}: another visit-detector changes the same object") from error
            raise BadData(f"{what}: {error}; {error.detail}") from error
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
            raise BadData(f"{what}: {error}; {error.detail}") from error
        except _NO_ANSWER as error:
            raise Transient(f"{what}: the L1 database does not answer: {error or type(error).__name__}") from error

    @asynccontextmanager
    async def _transaction(self, what: str) -> AsyncIterator[asyncpg.Connection]:
        async with self._connection(what) as connection, connection.transaction():
            yield connection

    async def objects_in(self, ra: float, dec: float, radius_deg: float) -> Table:
        """See `L1Database`."""
        first, end = _ranges(ra, dec, radius_deg)
        found = await self._read(
            "DiaObjectLast",
            "o JOIN unnest($1::bigint[], $2::bigint[]) AS r (first, stop) ON o.healpix >= first AND o.healpix < stop",
            first, end,
        )  # fmt: skip
        inside = separation_arcsec(found["ra"], found["dec"], ra, dec) <= radius_deg * 3600.0
        return ordered(found[inside], "diaObjectId")

    async def objects_of(self, object_ids: Ids) -> Table:
        """See `L1Database`."""
        rest = 'o WHERE o."diaObjectId" = ANY ($1::bigint[]) AND o."validityEndMjdTai" IS NULL'
        return ordered(await self._read("DiaObject", rest, object_ids.tolist()), "diaObjectId")

    async def history_of(self, object_ids: Ids, since_mjd: float) -> tuple[Table, Table]:
        """See `L1Database`."""
        names = "DiaSource", "DiaForcedSource"
        sources, forced = await asyncio.gather(*(self._history(name, object_ids, since_mjd) for name in names))
        order = "diaObjectId", "midpointMjdTai"
        return ordered(sources, *order), ordered(forced, *order)

    async def _history(self, name: str, object_ids: Ids, since_mjd: float) -> Table:
        column = l1_schema.PARTITIONED[name]
        rest = (
            'o WHERE o."diaObjectId" = ANY ($1::bigint[]) AND o."midpointMjdTai" >= $2::float8'
            f' AND o."{column}" >= $3::bigint'  # so that months before are not looked at
        )
        return await self._read(name, rest, object_ids.tolist(), since_mjd, _first_since(column, since_mjd))

    async def sources_of(self, visit: int, detector: int) -> Table:
        """See `L1Database`."""
        least, most = dia_source_id(visit, detector, 0), dia_source_id(visit, detector, MAX_SOURCES - 1)
        found = await self._read("DiaSource", 'o WHERE o."diaSourceId" BETWEEN $1::bigint AND $2::bigint', least, most)
        return ordered(found, "diaSourceId")

    async def _read(self, table: str, rest: str, *parameters: object) -> Table:
        """Rows of a table, named `o` in the `rest` of the statement."""
        columns = l1_schema.columns_of(table)
        output = io.BytesIO()
        query = f'SELECT {pg_copy.selection(columns, "o")} FROM "{table}" {rest}'  # noqa: S608 - apdb.yaml
        async with self._connection(f"reading {table}") as connection:
            await connection.copy_from_query(query, *parameters, output=output, format="binary", timeout=DEADLINE_S)
        return pg_copy.decode(output.getvalue(), columns, dtype_of(table))

    async def contains(self, visit: int, detector: int) -> bool:
        """See `L1Database`."""
        async with self._connection(f"looking for visit {visit} detector {detector}") as connection:
            query = "SELECT EXISTS (SELECT FROM visit_detector WHERE visit = $1 AND detector = $2)"
            return bool(await connection.fetchval(query, visit, detector))

    async def store(self, result: VisitDetectorResult, facts: Sequence[Event], at: float) -> Stored:
        """See `L1Database`."""
        check_result(result)
        await self._make_room(result.visit)
        async with self._transaction(str(result)) as connection:
            if not await _claim(connection, result, at):
                return Stored.EXISTS
            await _put_objects(connection, result)
            for name in ("DiaSource", "DiaForcedSource", "SSSource"):
                await _copy(connection, name, result.tables()[name])
            await journal.write_facts(connection, facts, at)
        return Stored.ADDED

    async def outbox(self, visit: int, detector: int) -> Outbox | None:
        """See `L1Database`."""
        async with self._connection(f"reading visit {visit} detector {detector}") as connection:
            query = "SELECT * FROM visit_detector WHERE visit = $1 AND detector = $2"
            row = await connection.fetchrow(query, visit, detector)
        return None if row is None else _outbox(row)

    async def unsent(self) -> list[Outbox]:
        """See `L1Database`."""
        async with self._connection("reading the outbox") as connection:
            rows = await connection.fetch(
                "SELECT * FROM visit_detector WHERE owed > 0 ORDER BY committed_at, visit, detector"
            )
        return [_outbox(row) for row in rows]

    async def mark_sent(self, visit: int, detector: int, acknowledged_at: Floats, failures: Mapping[str, int]) -> None:
        """See `L1Database`."""
        what = f"visit {visit} detector {detector}"
        async with self._transaction(f"marking {what} as sent") as connection:
            earlier = await connection.fetchval(
                "SELECT acknowledged_at FROM visit_detector WHERE visit = $1 AND detector = $2 FOR UPDATE",
                visit, detector,
            )  # fmt: skip
            merged = merged_acknowledgements(earlier, acknowledged_at, what)
            await connection.execute(
                "UPDATE visit_detector SET acknowledged_at = $3, owed = $4, failures = $5"
                " WHERE visit = $1 AND detector = $2",
                visit, detector, merged.tolist(), int(np.isnan(merged).sum()), json.dumps(dict(failures)),
            )  # fmt: skip

    async def acknowledgements(self, visits: Sequence[int]) -> Table:
        """See `L1Database`."""
        async with self._connection("reading acknowledgements") as connection:
            rows = await connection.fetch(
                "SELECT visit, detector, a.id, readout_ended, a.at FROM visit_detector,"
                " unnest(alert_ids, acknowledged_at) WITH ORDINALITY AS a (id, at, place)"
                " WHERE visit = ANY($1::bigint[]) ORDER BY visit, detector, place",
                list(visits),
            )
        return np.array([tuple(row) for row in rows], ACKNOWLEDGEMENT_DTYPE)

    async def load_orbits(self, table: Table) -> None:
        """See `L1Database`."""
        check_table("mpc_orbits", table, "the catalogue of orbits")
        async with self._transaction("loading orbits") as connection:
            await connection.execute("DELETE FROM mpc_orbits")
            await _copy(connection, "mpc_orbits", table)

    async def orbits(self) -> Table:
        """See `L1Database`."""
        return ordered(await self._read("mpc_orbits", "o"), "id")

    async def counts(self) -> dict[tuple[int, int], Counts]:
        """See `L1Database`."""
        async with self._connection("counting") as connection:
            rows = await connection.fetch(
                "SELECT visit, detector, dia_sources, new_dia_objects, dia_forced_sources,"
                " cardinality(alert_ids), cardinality(alert_ids) - owed FROM visit_detector"
            )
        return {(visit, detector): Counts(*counts) for visit, detector, *counts in rows}


def _first_since(column: str, mjd: float) -> int:
    """The least value of a column by which tables are cut that a source of that time (MJD TAI) or later can have.

    Two days earlier: a day of observing begins at noon of the day before.
    """
    first = dt.date.fromordinal(max(_MJD_0 + int(max(mjd, 0.0)) - 2, _FIRST_DAY))
    return l1_schema.first_of(column, first.year * 100 + first.month, first.day)


def _ranges(ra: float, dec: float, radius_deg: float) -> tuple[list[int], list[int]]:
    """HEALPix pixels that cover a cone, as ranges [first, end)."""
    coarse = hpgeom.query_circle(
        _CONE_NSIDE, ra % 360.0, dec, radius_deg, inclusive=True, return_pixel_ranges=True
    )  # fmt: skip
    ranges = coarse * (HEALPIX_NSIDE // _CONE_NSIDE) ** 2
    return ranges[:, 0].tolist(), ranges[:, 1].tolist()


async def _claim(connection: asyncpg.Connection, result: VisitDetectorResult, at: float) -> bool:
    """Enter a visit-detector. False if it is there; raises BadData if it is there with another content."""
    n = len(result.alert_ids)
    claimed = await connection.fetchval(
        "INSERT INTO visit_detector (visit, detector, grp, digest, readout_ended, committed_at, alert_path,"
        " dia_sources, new_dia_objects, dia_forced_sources, alert_ids, alert_keys, acknowledged_at, owed)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, $10, $11,"
        " array_fill('NaN'::float8, ARRAY[$12::int]), $12)"
        " ON CONFLICT DO NOTHING RETURNING visit",
        result.visit, result.detector, result.group, result.digest, result.readout_ended, at,
        result.alert_path, len(result.sources), len(result.forced), result.alert_ids.tolist(),
        result.alert_keys().tolist(), n,
    )  # fmt: skip
    if claimed is not None:
        return True
    query = "SELECT digest FROM visit_detector WHERE visit = $1 AND detector = $2"
    if await connection.fetchval(query, result.visit, result.detector) != result.digest:
        raise BadData(f"{result} is stored already, with another content")
    return False


async def _put_objects(connection: asyncpg.Connection, result: VisitDetectorResult) -> None:
    """End the current versions of objects, put the new ones there, count the objects that had none."""
    objects = ordered(result.objects, "diaObjectId")  # one order for all: no two transactions wait crosswise
    ids, starts = objects["diaObjectId"].tolist(), objects["validityStartMjdTai"].tolist()
    later = await connection.fetchval(_LATER, ids, starts)
    if later is not None:
        raise BadData(f"{result}: the current version of DiaObject {later} starts after the new one")
    known = await connection.fetch(_CLOSE, ids, starts)
    await _copy(connection, "DiaObject", objects)
    await connection.execute(_REPLACE_LAST, ids)
    await connection.execute(
        "UPDATE visit_detector SET new_dia_objects = $3 WHERE visit = $1 AND detector = $2",
        result.visit, result.detector, len(objects) - len(known),
    )  # fmt: skip


def _replace_last() -> str:
    """Bring `DiaObjectLast` up to the current versions of the objects $1."""
    names = [f'"{c.name}"' for c in l1_schema.columns_of("DiaObjectLast")] + ["healpix"]
    updates = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
    columns = ", ".join(names)
    return (
        f'INSERT INTO "DiaObjectLast" ({columns}) SELECT {columns} FROM "DiaObject"'  # noqa: S608 - apdb.yaml
        ' WHERE "diaObjectId" = ANY ($1::bigint[]) AND "validityEndMjdTai" IS NULL'
        f' ON CONFLICT ("diaObjectId") DO UPDATE SET {updates}'
    )


_REPLACE_LAST = _replace_last()


async def _copy(connection: asyncpg.Connection, name: str, table: Table) -> None:
    if len(table) == 0:
        return
    columns = l1_schema.columns_of(name)
    values = {column.name: table[column.name] for column in columns}
    if name in l1_schema.WITH_HEALPIX:
        columns += (l1_schema.HEALPIX,)
        values["healpix"] = healpix_of(table)
    await connection.copy_to_table(
        name, columns=[c.name for c in columns], source=io.BytesIO(pg_copy.encode(columns, values)),
        format="binary", timeout=DEADLINE_S,
    )  # fmt: skip


def _outbox(row: asyncpg.Record) -> Outbox:
    return Outbox(
        row["grp"], row["visit"], row["detector"], row["readout_ended"], row["alert_path"],
        row["dia_sources"], row["new_dia_objects"], row["dia_forced_sources"],
        np.array(row["alert_ids"], np.int64), np.array(row["alert_keys"], np.int64),
        np.array(row["acknowledged_at"], np.float64), json.loads(row["failures"]),
    )  # fmt: skip

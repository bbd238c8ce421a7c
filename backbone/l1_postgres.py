"""The L1 database in PostgreSQL."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import asyncpg
import hpgeom
import numpy as np

from backbone import journal, l1_rows, l1_schema, l1_tables
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
    merged_acknowledgements,
    ordered,
)
from schemas.errors import BadData, Transient
from schemas.events import Event
from schemas.identity import dia_source_ids_of
from schemas.tables import Table
from schemas.wcs import separation_arcsec

DEADLINE_S = 30.0
"""For one statement, or for a free connection, wall seconds."""

_MAX_CONNECTIONS = 4
_PLANS = {"plan_cache_mode": "force_custom_plan"}
"""Each statement is planned for what it is given: a plan that is kept from when tables were empty joins row by row, and
takes 30 s to end the versions of some thousand objects."""

_CONE_NSIDE = 2048
"""Cones are covered with pixels of 1.7 arcmin: few ranges to look up, few rows beyond the rim."""

_NO_ANSWER = (
    OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError, asyncpg.InsufficientResourcesError, asyncpg.TransactionRollbackError,
)  # fmt: skip

_IN_RANGES = "o JOIN unnest($1::bigint[], $2::bigint[]) AS r (first, stop) ON o.healpix >= first AND o.healpix < stop"
_VALID = 'o WHERE o."diaObjectId" = ANY ($1::bigint[]) AND o."validityEndMjdTai" IS NULL'
"""What follows a table's name in a statement; the table is `o`."""

_IDS_IN_RANGES = """SELECT coalesce(array_agg("diaObjectId"), '{}') FROM "DiaObjectLast" """ + _IN_RANGES  # noqa: S608


class L1Postgres:
    """`backbone.l1.L1Database` on a pool of connections."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._months: set[int] = set()

    @classmethod
    async def open(cls, dsn: str, *, create: bool = True) -> "L1Postgres":
        """Connect, and make the tables if there are none, or, told not to, see that they are there.

        Raises Transient if the server does not answer, Broken if its tables are of another `apdb.yaml`, BadData if
        there are none that should be there.
        """
        where = dsn.rsplit("@", 1)[-1]
        try:
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=_MAX_CONNECTIONS, command_timeout=DEADLINE_S, timeout=DEADLINE_S,
                server_settings=_PLANS,
            )  # fmt: skip
        except (*_NO_ANSWER, asyncpg.PostgresError) as error:
            raise Transient(f"the L1 database at {where} does not answer: {error!r}") from error
        database = cls(pool)
        try:
            async with database._transaction(f"opening {where}") as connection:
                await (l1_tables.make if create else l1_tables.check)(connection, where)
        except BaseException:
            pool.terminate()
            raise
        return database

    async def close(self) -> None:
        """Give the connections back."""
        await asyncio.wait_for(self._pool.close(), DEADLINE_S)

    async def _make_room(self, visit: int) -> None:
        """The month of a visit and the one after, if this process has not seen to them yet."""
        month = l1_schema.month_of(visit)
        if month in self._months:
            return
        months = month, l1_schema.next_month(month)
        async with self._transaction(f"making room for {months[0]} and {months[1]}") as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", l1_tables.LOCK)
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
            raise Transient(f"{what}: the L1 database does not answer: {error!r}") from error

    @asynccontextmanager
    async def _transaction(self, what: str) -> AsyncIterator[asyncpg.Connection]:
        async with self._connection(what) as connection, connection.transaction():
            yield connection

    async def objects_in(self, ra: float, dec: float, radius_deg: float) -> Table:
        """See `L1Database`."""
        found = await self._read("DiaObjectLast", _IN_RANGES, *_ranges(ra, dec, radius_deg))
        inside = separation_arcsec(found["ra"], found["dec"], ra, dec) <= radius_deg * 3600.0
        return ordered(found[inside], "diaObjectId")

    async def objects_of(self, object_ids: Ids) -> Table:
        """See `L1Database`."""
        return ordered(await self._read("DiaObject", _VALID, object_ids.tolist()), "diaObjectId")

    async def history_of(self, object_ids: Ids, since_mjd: float) -> tuple[Table, Table]:
        """See `L1Database`."""
        names = "DiaSource", "DiaForcedSource"
        sources, forced = await asyncio.gather(*(self._history(name, object_ids, since_mjd) for name in names))
        order = "diaObjectId", "midpointMjdTai"
        return ordered(sources, *order), ordered(forced, *order)

    async def _history(self, name: str, object_ids: Ids, since_mjd: float) -> Table:
        return await self._read(name, *l1_rows.since(name, object_ids.tolist(), since_mjd))

    async def preload(self, ra: float, dec: float, radius_deg: float, since_mjd: float) -> int:
        """See `L1Database`. The same ways through the same indexes as the reading, one after another: no haste."""
        async with self._connection(f"preloading {radius_deg:.2f} deg about ra {ra:.3f}, dec {dec:.3f}") as connection:
            ids: list[int] = await connection.fetchval(_IDS_IN_RANGES, *_ranges(ra, dec, radius_deg))
            total = len(ids) + await _count(connection, "DiaObject", _VALID, ids)
            for name in ("DiaSource", "DiaForcedSource"):
                total += await _count(connection, name, *l1_rows.since(name, ids, since_mjd))
        return total

    async def sources_of(self, visit: int, detector: int) -> Table:
        """See `L1Database`."""
        rest = 'o WHERE o."diaSourceId" BETWEEN $1::bigint AND $2::bigint'
        found = await self._read("DiaSource", rest, *dia_source_ids_of(visit, detector))
        return ordered(found, "diaSourceId")

    async def withdrawn(self, visit: int) -> set[int]:
        """The ids of the DIASources of a visit that are withdrawn."""
        query = (
            'SELECT "diaSourceId" FROM "DiaSource" WHERE "diaSourceId" BETWEEN $1 AND $2'
            ' AND "timeWithdrawnMjdTai" IS NOT NULL'
        )
        async with self._connection(f"reading what is withdrawn of visit {visit}") as connection:
            return {row["diaSourceId"] for row in await connection.fetch(query, *dia_source_ids_of(visit))}

    async def _read(self, table: str, rest: str, *parameters: object) -> Table:
        """Rows of a table, named `o` in the `rest` of the statement."""
        async with self._connection(f"reading {table}") as connection:
            return await l1_rows.read(connection, table, rest, *parameters)

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
                await l1_rows.copy(connection, name, result.tables()[name])
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
            await l1_rows.copy(connection, "mpc_orbits", table)

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


async def _count(connection: asyncpg.Connection, name: str, rest: str, *parameters: object) -> int:
    """How many rows; by a column that no index has, so that the rows themselves are looked at."""
    return int(await connection.fetchval(f'SELECT count(o."ra") FROM "{name}" {rest}', *parameters))  # noqa: S608


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
    """End the versions of objects that were read, put the new ones there, count the objects that had none."""
    known = await l1_rows.put_versions(connection, result.objects, result.read_starts, str(result))
    await connection.execute(
        "UPDATE visit_detector SET new_dia_objects = $3 WHERE visit = $1 AND detector = $2",
        result.visit, result.detector, len(result.objects) - known,
    )  # fmt: skip


def _outbox(row: asyncpg.Record) -> Outbox:
    return Outbox(
        row["grp"], row["visit"], row["detector"], row["readout_ended"], row["alert_path"],
        row["dia_sources"], row["new_dia_objects"], row["dia_forced_sources"],
        np.array(row["alert_ids"], np.int64), np.array(row["alert_keys"], np.int64),
        np.array(row["acknowledged_at"], np.float64), json.loads(row["failures"]),
    )  # fmt: skip

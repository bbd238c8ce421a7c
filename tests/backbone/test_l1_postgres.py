"""What only the L1 database in PostgreSQL can be asked: its tables, its transactions, its server."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import asyncpg
import numpy as np
import pytest
from felis.datamodel import Schema
from felis.metadata import MetaDataBuilder
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from backbone import journal, l1_postgres, l1_schema, pg_copy
from backbone.journal import PostgresJournal
from backbone.l1 import Stored
from backbone.l1_postgres import L1Postgres
from backbone.l1_rows import first_since
from cluster.services import free_port
from schemas.errors import Broken, Transient
from schemas.events import AlertsReady
from schemas.identity import visit_detector_of
from schemas.tables import apdb_schema
from tests.backbone.l1_results import DEC, MJD, RA, filled, result

VISIT = 2026070500004


@pytest.fixture
async def l1(dsn: str) -> AsyncIterator[L1Postgres]:
    database = await L1Postgres.open(dsn)
    yield database
    tables = '"DiaSource", "DiaObject", "DiaObjectLast", "DiaForcedSource", "SSSource"'
    await database._pool.execute(f"TRUNCATE visit_detector, journal, delivery, {tables}")
    await database.close()


def ready(visit: int) -> AlertsReady:
    return AlertsReady(
        group=f"group {visit}", instrument="LSSTCam", visit=visit, detector=94, readout_ended=1.0,
        dia_sources=20, new_dia_objects=19, alerts=20, path="x.avro", stages={},
    )  # fmt: skip


async def test_no_plan_is_kept_from_when_the_tables_were_empty(l1: L1Postgres) -> None:
    """One that joins row by row takes minutes for a crowded visit-detector."""
    for number in range(8):  # the server would keep the plan of the sixth on one connection
        await l1.store(result(VISIT + number), [], 1.0)
    async with l1._pool.acquire() as connection:
        kept, made = await connection.fetchrow(
            "SELECT sum(generic_plans), max(custom_plans) FROM pg_prepared_statements"
            " WHERE cardinality(parameter_types) > 0"
        )
    assert (kept, made) == (0, 8)


async def test_tables_are_those_that_felis_makes_but_for_the_size_of_floats(l1: L1Postgres) -> None:
    official = Schema.from_uri(str(resources.files("lsst.sdm.schemas") / "apdb.yaml"), context={"id_generation": True})
    metadata = MetaDataBuilder(official, apply_schema_to_metadata=False).build()
    assert {table.name for table in metadata.tables.values()} == set(apdb_schema())
    for table in metadata.tables.values():
        ours = [(c.name, c.sql_type, c.nullable) for c in l1_schema.columns_of(table.name)]
        assert ours == [(c.name, felis_type(c.type), c.nullable) for c in table.columns]
        rows = await l1._pool.fetch(
            "SELECT column_name, is_nullable FROM information_schema.columns WHERE table_name = $1"
            " AND column_name <> 'healpix' ORDER BY ordinal_position",
            table.name,
        )
        assert [(r[0], r[1] == "YES") for r in rows] == [(name, nullable) for name, _, nullable in ours]
        keys = await l1._pool.fetch(
            "SELECT column_name FROM information_schema.key_column_usage k"
            " JOIN information_schema.table_constraints USING (constraint_name)"
            " WHERE constraint_type = 'PRIMARY KEY' AND k.table_name = $1 ORDER BY k.ordinal_position",
            table.name,
        )
        assert [r[0] for r in keys] == [c.name for c in table.primary_key.columns]


def felis_type(sql_type: TypeEngine[Any]) -> str:
    name = sql_type.compile(postgresql.dialect())  # type: ignore[no-untyped-call]
    replaced = {"FLOAT": "REAL", "TIMESTAMP(6) WITHOUT TIME ZONE": "TIMESTAMP (6) WITHOUT TIME ZONE"}
    return replaced.get(name, name)


async def test_official_indexes_are_there_or_a_longer_one_is(l1: L1Postgres) -> None:
    rows = await l1._pool.fetch("SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")
    names = {row[0] for row in rows}
    assert {"IDX_DiaSource_visitDetector", "IDX_DiaObject_validityStart", "dia_source_history"} <= names
    assert "IDX_DiaSource_diaObjectId" not in names


async def test_rows_written_as_whole_columns_are_those_that_the_driver_reads_one_by_one(
    l1: L1Postgres,
) -> None:
    stored = result(VISIT, n=50)
    await l1.store(stored, [], 1.0)
    rows = await l1._pool.fetch('SELECT * FROM "DiaSource" ORDER BY "diaSourceId"')
    table = stored.sources
    for column in l1_schema.columns_of("DiaSource"):
        read = [row[column.name] for row in rows]
        expected = [plain(value, column) for value in table[column.name].tolist()]
        assert read == expected, column.name
    assert any(row["snr"] is None for row in rows)


def plain(value: object, column: l1_schema.Column) -> object:
    if isinstance(value, bool) or not column.nullable:
        return value
    empty = {-1} if column.name == "trailAlgorithm" else {0, ""}
    null = math.isnan(value) if isinstance(value, float) else value in empty
    return None if null else value


async def test_what_is_0_in_an_orbit_is_0_in_sql_and_what_is_unknown_null(l1: L1Postgres) -> None:
    orbits = filled("mpc_orbits", 2, np.random.default_rng(1), 0.0)
    orbits["id"], orbits["designation"] = (1, 2), ("2031 AA", "2031 AB")
    orbits["u_param"], orbits["nopp"], orbits["orbit_type_int"] = (0, -1), (1, 0), (0, 2)
    orbits["nobs_total"], orbits["nobs_total_sel"] = (0, -1), (-1, 0)
    await l1.load_orbits(orbits)
    names = ("u_param", "nopp", "orbit_type_int", "nobs_total", "nobs_total_sel")
    rows = await l1._pool.fetch(f"SELECT {', '.join(names)} FROM mpc_orbits ORDER BY id")  # noqa: S608 - ours
    assert [tuple(row) for row in rows] == [(0, 1, 0, 0, None), (None, 0, 2, None, 0)]
    assert [list(row) for row in (await l1.orbits())[list(names)]] == [[0, 1, 0, 0, -1], [-1, 0, 2, -1, 0]]


@pytest.mark.parametrize("table", ["DiaSource", "DiaObject", "mpc_orbits", "SSObject"])
def test_encoding_has_the_documented_layout(table: str) -> None:
    columns = l1_schema.columns_of(table)
    rows = filled(table, 3, np.random.default_rng(1))
    data = pg_copy.encode(columns, {c.name: rows[c.name] for c in columns})
    assert data.startswith(b"PGCOPY\n\xff\r\n\x00" + bytes(8))
    position = 19
    for _ in range(3):
        assert int.from_bytes(data[position : position + 2], "big") == len(columns)
        position += 2
        for _ in columns:
            length = int.from_bytes(data[position : position + 4], "big", signed=True)
            position += 4 + max(length, 0)
    assert data[position:] == b"\xff\xff"


async def test_facts_are_written_with_the_rows_or_not_at_all(l1: L1Postgres) -> None:
    assert await l1.store(result(VISIT), [ready(VISIT)], 12.5) is Stored.ADDED
    late = result(VISIT + 1, known=result(VISIT, mjd=MJD - 1.0).objects[:1])
    with pytest.raises(Transient, match="is not as it was read"):
        await l1.store(late, [ready(VISIT + 1)], 13.5)
    journal = await l1._pool.fetch("SELECT event_id, at FROM journal")
    assert [tuple(row) for row in journal] == [(ready(VISIT).event_id, 12.5)]


async def test_versions_of_an_object_follow_one_another_without_a_gap(l1: L1Postgres) -> None:
    first = result(VISIT)
    await l1.store(first, [], 1.0)
    last = first
    for i in (1, 2, 3):
        last = result(VISIT + i, known=last.objects[:4], mjd=MJD + i)
        await l1.store(last, [], 1.0)
    rows = await l1._pool.fetch(
        'SELECT "validityStartMjdTai", "validityEndMjdTai" FROM "DiaObject" WHERE "diaObjectId" = $1 ORDER BY 1',
        int(first.objects["diaObjectId"][2]),
    )
    starts = [MJD + i + 0.001 for i in range(4)]
    assert [tuple(row) for row in rows] == list(zip(starts, [*starts[1:], None], strict=True))


async def test_the_table_of_last_versions_holds_exactly_the_valid_ones(l1: L1Postgres) -> None:
    first = result(VISIT)
    await l1.store(first, [], 1.0)
    await l1.store(result(VISIT + 1, known=first.objects[:4], mjd=MJD + 1), [], 1.0)
    names = ", ".join(f'"{c.name}"' for c in l1_schema.columns_of("DiaObjectLast")) + ", healpix"
    last = await l1._pool.fetch(f'SELECT {names} FROM "DiaObjectLast" ORDER BY 1')  # noqa: S608
    valid = await l1._pool.fetch(
        f'SELECT {names} FROM "DiaObject" WHERE "validityEndMjdTai" IS NULL ORDER BY 1'  # noqa: S608
    )
    assert last == valid
    assert len(last) == 19 + 15


async def test_neighbours_that_change_the_same_object_at_once_do_not_lose_a_version(l1: L1Postgres) -> None:
    first = result(VISIT)
    await l1.store(first, [], 1.0)
    rivals = [result(VISIT + 1, d, known=first.objects, n=30, mjd=MJD + 1 + d / 100) for d in range(4)]
    outcomes = await asyncio.gather(*(l1.store(r, [], 1.0) for r in rivals), return_exceptions=True)
    (first_of_them,) = (r for r, o in zip(rivals, outcomes, strict=True) if o is Stored.ADDED)
    assert [type(o) for o in outcomes].count(Transient) == 3
    assert [r for r in rivals if await l1.contains(r.visit, r.detector)] == [first_of_them]
    found = await l1.objects_in(RA, DEC, 1.0)
    assert len(found) == len(np.unique(found["diaObjectId"])) == 19 + 10
    known = await l1.objects_of(first.objects["diaObjectId"])
    assert set(known["validityStartMjdTai"]) == {first_of_them.objects["validityStartMjdTai"][0]}


async def test_a_second_process_finds_the_tables_made(l1: L1Postgres, dsn: str) -> None:
    await l1.store(result(VISIT), [], 1.0)
    others = await asyncio.gather(*(L1Postgres.open(dsn) for _ in range(3)))
    for other in others:
        assert await other.contains(VISIT, 94)
        await other.close()


async def test_tables_of_another_version_are_refused(l1: L1Postgres, dsn: str) -> None:
    await l1._pool.execute("UPDATE metadata SET value = '9.0.0' WHERE name = 'version:schema'")
    with pytest.raises(Broken, match=r"has apdb 9\.0\.0, this is for 10\.0\.0"):
        await L1Postgres.open(dsn)
    await l1._pool.execute("UPDATE metadata SET value = $1 WHERE name = 'version:schema'", l1_schema.schema_version())


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    address = f"127.0.0.1:{free_port()}/postgres"
    with pytest.raises(Transient, match=f"the L1 database at {address} does not answer") as raised:
        await L1Postgres.open(f"postgresql://pachon:secret@{address}")
    assert "secret" not in str(raised.value)


async def test_of_a_server_that_says_nothing_it_is_told_that_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (l1_postgres, journal):
        monkeypatch.setattr(module, "DEADLINE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://pachon@127.0.0.1:{silent.getsockname()[1]}/postgres"
        for store in (L1Postgres, PostgresJournal):
            with pytest.raises(Transient, match=r"does not answer: TimeoutError\(\)"):
                await store.open(dsn)


async def test_a_connection_cut_in_the_middle_changes_nothing_and_the_next_attempt_succeeds(
    l1: L1Postgres, dsn: str
) -> None:
    killer = await asyncpg.connect(dsn)
    async with killer.transaction():
        await killer.execute('LOCK TABLE "DiaForcedSource" IN EXCLUSIVE MODE')
        attempt = asyncio.create_task(l1.store(result(VISIT), [ready(VISIT)], 1.0))
        await waiting_for_a_lock(killer)
        await killer.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        with pytest.raises(Transient, match=f"visit {VISIT} detector 94: the L1 database does not answer"):
            await attempt
    await killer.close()
    assert not await l1.contains(VISIT, 94)
    assert await l1._pool.fetchval("SELECT count(*) FROM journal") == 0
    assert await l1.store(result(VISIT), [ready(VISIT)], 1.0) is Stored.ADDED


async def waiting_for_a_lock(connection: asyncpg.Connection) -> None:
    async with asyncio.timeout(10):
        while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            pass


async def test_sources_lie_in_the_month_of_their_visit(l1: L1Postgres) -> None:
    visits = 2027120100001, 2027123199999, 2028010100001
    for day, visit in enumerate(visits):
        await l1.store(result(visit, mjd=MJD + 700.0 + day), [], 1.0)
    for table in l1_schema.PARTITIONED:
        column = "visit" if table == "DiaForcedSource" else '"diaSourceId"'
        rows = await l1._pool.fetch(f'SELECT DISTINCT tableoid::regclass::text AS name, {column} FROM "{table}"')  # noqa: S608
        months = {str(row["name"]).strip('"').rsplit("_")[-1] for row in rows}
        assert months == {"202712", "202801"}, table
    for visit in visits:
        assert len(await l1.sources_of(visit, 94)) == 20


async def test_months_before_those_asked_for_are_not_looked_at(l1: L1Postgres, dsn: str) -> None:
    """MJD 61000 is 21 November 2025."""
    long_ago, lately = result(2024100500001, mjd=60589.0), result(2025112000001, mjd=MJD)
    for each in (long_ago, lately):
        await l1.store(each, [], 1.0)
    ids = np.concatenate([long_ago.objects["diaObjectId"], lately.objects["diaObjectId"]])
    assert len((await l1.history_of(ids, MJD - 500.0))[0]) == 38
    holder = await asyncpg.connect(dsn)
    async with holder.transaction():
        for table in ("DiaSource", "DiaForcedSource"):
            await holder.execute(f'LOCK TABLE ONLY "{table}_202410" IN ACCESS EXCLUSIVE MODE')
        found = await asyncio.wait_for(l1.history_of(ids, MJD - 365.0), 10.0)
    await holder.close()
    assert [len(table) for table in found] == [19, 19]


@pytest.mark.parametrize(("mjd", "first"), [(0.0, 2010010100000), (61000.0, 2025111900000), (60676.9, 2024123000000)])
def test_the_first_visit_that_may_be_as_late_as_a_time(mjd: float, first: int) -> None:
    assert first_since("visit", mjd) == first
    assert visit_detector_of(first_since("diaSourceId", mjd)) == (first, 0)


async def test_two_processes_make_room_for_the_same_month_at_once(l1: L1Postgres, dsn: str) -> None:
    others = [l1, *[await L1Postgres.open(dsn) for _ in range(2)]]
    stored = await asyncio.gather(*(o.store(result(2029050100001, d), [], 1.0) for d, o in enumerate(others)))
    assert stored == [Stored.ADDED] * 3
    for other in others[1:]:
        await other.close()


async def test_a_database_of_another_layout_is_refused(l1: L1Postgres, dsn: str) -> None:
    await l1._pool.execute("DELETE FROM metadata WHERE name = $1", l1_schema.LAYOUT_KEY)
    with pytest.raises(Broken, match="has layout None, this is for 2"):
        await L1Postgres.open(dsn)
    await l1._pool.execute("INSERT INTO metadata VALUES ($1, $2)", l1_schema.LAYOUT_KEY, l1_schema.LAYOUT)


async def test_a_month_is_made_while_a_dump_reads_and_while_others_read_on(l1: L1Postgres, dsn: str) -> None:
    await l1.store(result(2031020100001), [], 1.0)
    reader = await asyncpg.connect(dsn)
    async with reader.transaction():
        await reader.execute('LOCK TABLE "DiaSource", "SSSource", "DiaForcedSource" IN ACCESS SHARE MODE')
        stored = await asyncio.wait_for(l1.store(result(2031060100001), [], 1.0), 10.0)
        assert stored is Stored.ADDED
        assert len(await asyncio.wait_for(l1.sources_of(2031020100001, 94), 10.0)) == 20
    await reader.close()

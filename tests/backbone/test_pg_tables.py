"""Making what a database lacks, beside others who write to it."""

import asyncpg
import pytest

from backbone import journal, l1_postgres
from backbone.journal import PostgresJournal
from backbone.l1_postgres import L1Postgres
from backbone.pg_tables import make_lacking

WRITES = "INSERT INTO journal (event_id, kind, grp, at, payload) VALUES ('x', 'x', 'x', 0, '{}')"


async def test_who_opens_a_database_that_has_its_tables_waits_for_nobody_who_writes(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for store in (L1Postgres, PostgresJournal):
        await (await store.open(dsn)).close()
    monkeypatch.setattr(journal, "DEADLINE_S", 2.0)
    monkeypatch.setattr(l1_postgres, "DEADLINE_S", 2.0)
    writer = await asyncpg.connect(dsn)
    try:
        under_way = writer.transaction()
        await under_way.start()
        await writer.execute(WRITES)
        for store in (L1Postgres, PostgresJournal):
            await (await store.open(dsn)).close()
        await under_way.rollback()
    finally:
        await writer.close()


async def test_what_is_lacking_is_made(dsn: str) -> None:
    ddl = "CREATE TABLE IF NOT EXISTS lacking (a int); CREATE INDEX IF NOT EXISTS lacking_a ON lacking (a);"
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE TABLE lacking (a int)")
        await make_lacking(connection, ddl)
        assert await connection.fetchval("SELECT to_regclass('lacking_a')") == "lacking_a"
    finally:
        await connection.execute("DROP TABLE lacking")
        await connection.close()

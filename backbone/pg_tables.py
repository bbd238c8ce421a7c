"""Making the tables and indexes that a database lacks, and touching none that it has."""

import re

import asyncpg

_NAMED = re.compile(r"IF NOT EXISTS (\w+)")


async def make_lacking(connection: asyncpg.Connection, ddl: str, deadline_s: float | None = None) -> None:
    """Run `ddl`, of CREATE ... IF NOT EXISTS, within the caller's transaction, unless all that it names is there.

    Making an index waits for all who write to its table, and lets no other write until the transaction ends, even
    where the index is there: of processes that start beside others at work two would then wait for each other.
    """
    query = "SELECT bool_or(to_regclass(name) IS NULL) FROM unnest($1::text[]) AS name"
    if await connection.fetchval(query, _NAMED.findall(ddl)):
        await connection.execute(ddl, timeout=deadline_s)

"""Whether a PostgreSQL database holds an L1 database of this version, and the making of one."""

import asyncpg

from backbone import journal, l1_schema
from backbone.pg_tables import make_lacking
from schemas.errors import BadData, Broken

LOCK = 0x4C31
"""Advisory lock ("L1"): one process makes tables."""


async def make(connection: asyncpg.Connection, where: str) -> None:
    """Make the tables that are not there, in the caller's transaction. Raises as `check`."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
    if await connection.fetchval("SELECT to_regclass('visit_detector')") is None:
        await connection.execute(l1_schema.ddl())
    else:
        await make_lacking(connection, l1_schema.WITHDRAWAL_DDL)  # what was made before there were withdrawals
    await make_lacking(connection, journal.DDL)
    await check(connection, where)


async def check(connection: asyncpg.Connection, where: str) -> None:
    """Raises BadData if it is no L1 database, Broken if it is one of another `apdb.yaml` or layout."""
    found = await _versions(connection)
    if found is None:
        raise BadData(f"the database at {where} is no L1 database; it is left as it is")
    version, layout = found.get(l1_schema.VERSION_KEY), found.get(l1_schema.LAYOUT_KEY)
    if version != l1_schema.schema_version():
        raise Broken(f"the L1 database at {where} has apdb {version}, this is for {l1_schema.schema_version()}")
    if layout != l1_schema.LAYOUT:
        raise Broken(f"the L1 database at {where} has layout {layout}, this is for {l1_schema.LAYOUT}")


async def _versions(connection: asyncpg.Connection) -> dict[str, str] | None:
    """What the database says of itself; None if it is not ours."""
    if await connection.fetchval("SELECT to_regclass('visit_detector')") is None:
        return None
    try:
        rows = await connection.fetch("SELECT name, value FROM metadata")
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        return None
    return {row["name"]: row["value"] for row in rows}

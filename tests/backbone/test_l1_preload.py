"""What a preload is for: the server need not go to the disk when association reads."""

from pathlib import Path

import asyncpg

from backbone.l1_postgres import L1Postgres
from cluster.services import EmbeddedPostgres
from tests.backbone.l1_results import DEC, MJD, RA, result

VISIT, VISITS, RADIUS_DEG = 2026070500004, 6, 0.12


async def fill(dsn: str) -> None:
    """Some visits of one field."""
    l1, known = await L1Postgres.open(dsn), None
    for n in range(VISITS):
        stored = result(VISIT + n, n=300, known=known, mjd=MJD + n)
        await l1.store(stored, [], float(n))
        known = stored.objects[:200]
    await l1.close()


async def run(dsn: str, query: str) -> int:
    connection = await asyncpg.connect(dsn)
    value = int(await connection.fetchval(query) or 0)
    await connection.close()
    return value


async def blocks_read(dsn: str) -> int:
    """Of tables and indexes, from outside the server's memory, by all connections that were closed."""
    return await run(
        dsn, "SELECT sum(coalesce(heap_blks_read, 0) + coalesce(idx_blks_read, 0)) FROM pg_statio_user_tables"
    )


async def preload(dsn: str) -> None:
    l1 = await L1Postgres.open(dsn)
    await l1.preload(RA, DEC, RADIUS_DEG, MJD - 365.0)
    await l1.close()


async def read(dsn: str) -> int:
    """As association does, but all; how many rows of objects, sources and forced sources there are at the least."""
    l1 = await L1Postgres.open(dsn)
    ids = (await l1.objects_in(RA, DEC, RADIUS_DEG))["diaObjectId"]
    await l1.objects_of(ids)
    sources, forced = await l1.history_of(ids, MJD - 365.0)
    await l1.close()
    return min(len(ids), len(sources), len(forced))


async def test_what_was_preloaded_is_read_from_the_servers_memory(open_folder: Path) -> None:
    with EmbeddedPostgres(open_folder) as server:
        await fill(server.url)
    lacking = []
    for preloaded in (False, True):
        with EmbeddedPostgres(open_folder) as server:  # started anew: nothing is in its memory
            if preloaded:
                await preload(server.url)
            before = await blocks_read(server.url)
            assert await read(server.url) > 300
            lacking.append(await blocks_read(server.url) - before)
    assert lacking[0] > 50
    assert lacking[1] == 0

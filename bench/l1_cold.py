"""What association reads of the L1 database when its server has it not in memory. `python -m bench.l1_cold [PATCHES]`.

Patches of sky, a CCD's each, seen every three days for a year, as in `bench.l1db`; one visit sees them all, each with a
detector of its own, so that the rows of one lie between those of the others. Then, for each patch by turns: the server
is stopped, its files are put out of the kernel's memory, it is started, another patch is read, so that connections and
plans are as in an associator at work, and a visit-detector's reads are timed (`objects_in`, and then together
`objects_of` and `history_of` of the 53 objects seen), with and without the preload.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import numpy as np

from actors.associator import PRELOAD_RADIUS_DEG
from backbone.l1_postgres import L1Postgres
from bench.l1db import DEC, EVERY_DAYS, FIRST_MJD, HISTORY_DAYS, RADIUS_DEG, Patch, timed
from cluster.services import EmbeddedPostgres

VISITS = 122
APART_DEG = 1.0
WARM_UP = 4
NOW = FIRST_MJD + EVERY_DAYS * VISITS


async def fill(dsn: str, patches: list[Patch]) -> None:
    """A year's visits."""
    database, start = await L1Postgres.open(dsn), time.perf_counter()
    for number in range(VISITS):
        for patch in patches:
            seen = patch.seen() if number else np.zeros(0, np.int64)
            await database.store(patch.visit(number, seen), [], float(number))
    await database.close()
    connection = await asyncpg.connect(dsn)
    await connection.execute("VACUUM ANALYZE")
    size = await connection.fetchval("SELECT pg_database_size(current_database())")
    await connection.execute("CHECKPOINT")
    await connection.close()
    print(f"{len(patches)} patches, {VISITS} visits: {size / 2**20:.0f} MB, in {time.perf_counter() - start:.0f} s")


def chill(folder: Path) -> None:
    """Put a stopped server's files out of the kernel's memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


async def reads(dsn: str, patch: Patch, other: Patch, *, preload: bool) -> list[float]:
    """Wall ms: of the preload (0: none), of the first reads of a patch, and of the same once more."""
    database, since = await L1Postgres.open(dsn), NOW - HISTORY_DAYS

    async def read(which: Patch, seen: np.ndarray) -> None:
        await database.objects_in(which.ra, DEC, RADIUS_DEG)
        await asyncio.gather(database.objects_of(seen), database.history_of(seen, since))

    for _ in range(WARM_UP):
        await read(other, other.seen())
        await database.preload(other.ra, DEC, PRELOAD_RADIUS_DEG, since)
    seen, before = patch.seen(), 0.0
    if preload:
        before = await timed(lambda: database.preload(patch.ra, DEC, PRELOAD_RADIUS_DEG, since))
    result = [before, *[await timed(lambda: read(patch, seen)) for _ in range(2)]]
    await database.close()
    return result


def compare(folder: Path, n_patches: int) -> None:
    """Each patch with and without, on a server just started."""
    rng = np.random.default_rng(1)
    patches = [Patch.new(rng, 150.0 + APART_DEG * k, k) for k in range(n_patches)]
    with EmbeddedPostgres(folder) as server:
        asyncio.run(fill(server.url, patches))
    took: dict[bool, list[list[float]]] = {False: [], True: []}
    for patch, other in zip(patches, patches[1:] + patches[:1], strict=True):
        for preload, times in took.items():
            chill(folder)
            with EmbeddedPostgres(folder) as server:
                times.append(asyncio.run(reads(server.url, patch, other, preload=preload)))
    print("wall ms, median (lowest to highest):    preload    first reads    the same again")
    for preload, times in took.items():
        cells = [f"{np.median(c):7.1f} ({min(c):.1f} to {max(c):.1f})" for c in zip(*times, strict=True)]
        print("with preload   " if preload else "without preload", *cells)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        compare(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 10)

"""The L1 database: a visit stored and loaded. `python -m bench.l1_database [million objects]`."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import numpy as np

from backbone.l1 import VisitDetectorResult
from backbone.l1_postgres import L1Postgres
from cluster.services import EmbeddedPostgres
from tests.backbone.l1_results import DEC, MJD, RA, result

VISIT = 2026070500004
PER_CCD, CCDS = 53, 189
SIDE_DEG = 12.0
CCD_RADIUS_DEG = 0.163


def spread(made: VisitDetectorResult, rng: np.random.Generator) -> VisitDetectorResult:
    """The result with its objects all over a square of sky, 7000 a square degree for a million."""
    ra, dec = (rng.uniform(c - SIDE_DEG / 2, c + SIDE_DEG / 2, len(made.objects)) for c in (RA, DEC))
    for table in (made.objects, made.forced):
        table["ra"], table["dec"] = ra, dec
    return made


async def timed(repeats: int, call: Callable[[int], Awaitable[object]]) -> str:
    seconds = []
    for i in range(repeats):
        start = time.perf_counter()
        await call(i)
        seconds.append(time.perf_counter() - start)
    return f"{np.median(seconds) * 1e3:8.1f} ms median of {repeats}, worst {max(seconds) * 1e3:.1f}"


async def measure(dsn: str, millions: float) -> None:
    database = await L1Postgres.open(dsn)
    rng = np.random.default_rng(1)
    start = time.perf_counter()
    for i in range(round(millions * 50)):
        await database.store(spread(result(VISIT - 3000 + i, n=20_001), rng), [], float(i))
    print(f"loaded {millions} million objects with as many sources in {time.perf_counter() - start:.1f} s")
    connection = await asyncpg.connect(dsn)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()

    whole = [result(VISIT + i, n=10_001) for i in range(5)]
    print("store 10,000 sources, 10,000 new objects, 10,000 forced, one visit-detector:")
    print(await timed(5, lambda i: database.store(whole[i], [], 1.0)))
    again = whole[:1]
    for i in range(5):
        again.append(result(VISIT + 100 + i, n=10_001, known=again[-1].objects, mjd=MJD + 1 + i))
    print("the same, all objects known:")
    print(await timed(5, lambda i: database.store(again[1 + i], [], 1.0)))
    visits = [[result(VISIT + 200 + i, d, n=PER_CCD) for d in range(CCDS)] for i in range(3)]

    async def visit(i: int) -> None:
        for one in visits[i]:
            await database.store(one, [], 1.0)

    print(f"store a visit as {CCDS} visit-detectors of {PER_CCD} sources, one after another:")
    print(await timed(3, visit))
    centers = np.array([RA, DEC]) + rng.uniform(-SIDE_DEG / 2, SIDE_DEG / 2, (60, 2))
    cones = [await database.objects_in(center[0], center[1], CCD_RADIUS_DEG) for center in centers[:30]]
    print(f"objects_in, a CCD's circle, {np.mean([len(c) for c in cones]):.0f} objects:")
    print(await timed(30, lambda i: database.objects_in(centers[30 + i, 0], centers[30 + i, 1], CCD_RADIUS_DEG)))
    ids = whole[0].objects["diaObjectId"]
    print("history_of 600 objects with 6 sources and forced sources each:")
    print(await timed(20, lambda i: database.history_of(ids[i * 400 :][:600], 0.0)))
    await database.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder)) as server:
            asyncio.run(measure(server.url, float(sys.argv[1]) if len(sys.argv) > 1 else 1.0))

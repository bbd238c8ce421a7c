"""The L1 database against `dax_apdb`, Rubin's own, on the same PostgreSQL with the same records.

    uv run --group peers python -m bench.l1db [MONTHS] [--alone]

One patch of sky, a CCD's, seen every three days for a year: 500 DIAObjects, of which each visit sees 53, and 2 new
ones; forced photometry on all. For each month the medians over its ten visits, wall milliseconds: load, what a visit
has to know, and store (sources, objects, forced sources, one transaction). Loaded are the objects of the field and a
history of 12 months: by dax_apdb, as its users ask, of all in the field; by ours of the objects seen, which is what
alerts carry, and in a second column of all as well. All are on one embedded PostgreSQL; dax_apdb keeps its table of
last objects (`last_object_table`), which is its fastest. `--alone`: without dax_apdb.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import numpy as np

from backbone.l1 import VisitDetectorResult
from backbone.l1_postgres import L1Postgres
from cluster.services import EmbeddedPostgres
from schemas.identity import dia_forced_source_id, dia_source_id, exposure_id
from schemas.tables import Table, dtype_of
from tests.backbone.l1_results import filled

RA, DEC, RADIUS_DEG = 150.0, 2.0, 0.16
OBJECTS, SEEN, NEW = 500, 53, 2
EVERY_DAYS, PER_MONTH, HISTORY_DAYS = 3.0, 10, 365.0
DETECTOR, FIRST_MJD = 94, 61041.0
"""1 January 2026."""


class Database(Protocol):
    """What is measured."""

    async def load(self, seen: np.ndarray, mjd: float) -> int:
        """What a visit has to know; how many rows that is."""

    async def store(self, result: VisitDetectorResult) -> None:
        """What a visit has found."""


class Ours:
    """Pachon's. `whole`: the history of all in the field is loaded."""

    def __init__(self, database: L1Postgres, *, whole: bool) -> None:
        self._database = database
        self._whole = whole

    async def load(self, seen: np.ndarray, mjd: float) -> int:
        """See `Database`."""
        places = await self._database.objects_in(RA, DEC, RADIUS_DEG)
        wanted = places["diaObjectId"] if self._whole else seen
        objects = await self._database.objects_of(wanted)
        sources, forced = await self._database.history_of(wanted, mjd - HISTORY_DAYS)
        return len(places) + len(objects) + len(sources) + len(forced)

    async def store(self, result: VisitDetectorResult) -> None:
        """See `Database`."""
        await self._database.store(result, [], result.readout_ended)


class Apdb:
    """`lsst.dax.apdb` on SQL."""

    def __init__(self, url: str) -> None:
        from lsst.dax.apdb.sql import ApdbSql  # noqa: PLC0415 - may not be there
        from lsst.sphgeom import Angle, Circle, LonLat, UnitVector3d  # noqa: PLC0415

        config = ApdbSql.init_database(
            url.replace("postgresql://", "postgresql+psycopg2://"), dia_object_index="last_object_table", drop=True
        )
        self._apdb = ApdbSql(config)
        self._region = Circle(UnitVector3d(LonLat.fromDegrees(RA, DEC)), Angle.fromDegrees(RADIUS_DEG))

    async def load(self, seen: np.ndarray, mjd: float) -> int:  # noqa: ARG002 - it asks for the field's
        """See `Database`."""
        objects = self._apdb.getDiaObjects(self._region)
        ids, when = objects["diaObjectId"].to_list(), _time(mjd)
        sources = self._apdb.getDiaSources(self._region, ids, when)
        forced = self._apdb.getDiaForcedSources(self._region, ids, when)
        return len(objects) + len(sources) + len(forced)

    async def store(self, result: VisitDetectorResult) -> None:
        """See `Database`."""
        frames = self.frames(result)
        self._apdb.store(_time(float(result.sources["midpointMjdTai"][0])), *frames)

    def frames(self, result: VisitDetectorResult) -> list[Any]:
        """Objects, sources, forced sources as it takes them."""
        from pandas import DataFrame  # noqa: PLC0415

        return [
            DataFrame({name: _with_none(table[name], name) for name in table.dtype.names or ()})
            for table in (result.objects, result.sources, result.forced)
        ]


def _time(mjd: float) -> Any:  # noqa: ANN401 - astropy's
    from astropy.time import Time  # noqa: PLC0415

    return Time(mjd, format="mjd", scale="tai")


def _with_none(values: np.ndarray, name: str) -> np.ndarray:
    boxed = values.astype(object)
    if name in ("ssObjectId", "parentDiaSourceId"):
        boxed[values == 0] = None
        return boxed
    return boxed if values.dtype.kind == "U" else values


@dataclass
class Patch:
    """The sky before a detector: known objects, which grow. `ra`: of its centre, deg."""

    objects: Table
    rng: np.random.Generator
    ra: float = RA
    detector: int = DETECTOR

    @classmethod
    def new(cls, rng: np.random.Generator, ra: float = RA, detector: int = DETECTOR) -> "Patch":
        """Objects all over a CCD, none stored yet."""
        return cls(np.zeros(0, dtype_of("DiaObject")), rng, ra, detector)

    def seen(self) -> np.ndarray:
        """Ids of those that a visit sees."""
        return np.sort(self.rng.choice(self.objects["diaObjectId"], SEEN, replace=False))

    def visit(self, number: int, seen: np.ndarray) -> VisitDetectorResult:
        """What the `number`-th visit finds."""
        mjd = FIRST_MJD + EVERY_DAYS * number
        visit = exposure_id(int(_time(mjd).strftime("%Y%m%d")), 1)
        old = self.objects[np.isin(self.objects["diaObjectId"], seen)]
        n_new = NEW if len(self.objects) else OBJECTS
        sources = filled("DiaSource", len(old) + n_new, self.rng)
        sources["diaSourceId"] = [dia_source_id(visit, self.detector, k) for k in range(len(sources))]
        sources["ra"], sources["dec"] = (c + self.rng.uniform(-0.1, 0.1, len(sources)) for c in (self.ra, DEC))
        for name in ("ra", "dec"):
            sources[name][: len(old)] = old[name]
        sources["diaObjectId"] = np.append(old["diaObjectId"], sources["diaSourceId"][len(old) :])
        sources["ssObjectId"], sources["visit"], sources["detector"] = 0, visit, self.detector
        sources["midpointMjdTai"], sources["timeWithdrawnMjdTai"] = mjd, np.nan
        new = filled("DiaObject", n_new, self.rng)
        objects = np.concatenate([old, new])
        for name in ("ra", "dec", "diaObjectId"):
            objects[name] = sources[name]
        read_starts = np.append(old["validityStartMjdTai"], np.full(n_new, np.nan))
        objects["validityStartMjdTai"], objects["validityEndMjdTai"] = mjd + 0.001, np.nan
        kept = self.objects[~np.isin(self.objects["diaObjectId"], seen)]
        self.objects = np.concatenate([kept, objects])
        forced = self._forced(visit, mjd)
        return VisitDetectorResult(
            f"g{visit}", visit, self.detector, mjd, sources, objects, forced, filled("SSSource", 0, self.rng),
            f"{visit}.avro", sources["diaSourceId"].astype(np.int64), read_starts,
        )  # fmt: skip

    def _forced(self, visit: int, mjd: float) -> Table:
        forced = filled("DiaForcedSource", len(self.objects), self.rng)
        for name in ("diaObjectId", "ra", "dec"):
            forced[name] = self.objects[name]
        forced["diaForcedSourceId"] = [dia_forced_source_id(visit, self.detector, k) for k in range(len(forced))]
        forced["visit"], forced["detector"], forced["band"] = visit, self.detector, "r"
        forced["midpointMjdTai"], forced["timeWithdrawnMjdTai"] = mjd, np.nan
        return forced


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Wall milliseconds."""
    start = time.perf_counter()
    await call()
    return (time.perf_counter() - start) * 1e3


async def measure(databases: dict[str, Database], months: int) -> None:
    """A year, month by month."""
    patch, number = Patch.new(np.random.default_rng(1)), 0
    first = patch.visit(number, np.zeros(0, np.int64))
    for database in databases.values():
        await database.store(first)
    print(f"{'month':>5s}  " + "  ".join(f"{name:>8s}: load  store   both" for name in databases) + "  ratios")
    for month in range(1, months + 1):
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in databases}
        for _ in range(PER_MONTH):
            number += 1
            seen = patch.seen()
            result = patch.visit(number, seen)
            for name, database in databases.items():
                load = await timed(lambda: database.load(seen, FIRST_MJD + EVERY_DAYS * number))  # noqa: B023 - awaited
                store = await timed(lambda: database.store(result))  # noqa: B023 - awaited
                took[name].append((load, store))
        medians = {name: np.median(np.array(times), axis=0) for name, times in took.items()}
        cells = "  ".join(f"{'':>8s} {m[0]:6.1f} {m[1]:6.1f} {m.sum():6.1f}" for m in medians.values())
        peer = float(medians["dax_apdb"].sum()) if "dax_apdb" in medians else np.nan
        ratios = " ".join(f"{peer / m.sum():5.1f}" for name, m in medians.items() if name != "dax_apdb")
        print(f"{month:5d}  {cells}  {ratios}", flush=True)


async def compare(url: str, months: int, *, alone: bool) -> None:
    """Three databases on one server; two, if ours are to be alone."""
    server = url.rsplit("/", 1)[0]
    connection = await asyncpg.connect(url)
    for name in ("whole", "apdb"):
        await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    ours = [await L1Postgres.open(url), await L1Postgres.open(f"{server}/whole")]
    databases: dict[str, Database] = {"pachon": Ours(ours[0], whole=False), "of all": Ours(ours[1], whole=True)}
    if not alone:
        databases["dax_apdb"] = Apdb(f"{server}/apdb")
    await measure(databases, months)
    for database in ours:
        await database.close()


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--alone"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder)) as server:
            asyncio.run(compare(server.url, int(given[0]) if given else 12, alone="--alone" in sys.argv))

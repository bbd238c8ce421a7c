"""A visit's alerts, from DIASources with stamps to acknowledged by a broker, in the processes that a night has for it.

    python -m bench.alerts_visit [ALERTS]

Associator, emitter and lite emitter, one process each with the lanes that they have in a night, an embedded PostgreSQL
and an embedded broker. 189 detectors come at once. Each source is of an object that was seen in 20 visits of the year
before, with forced photometry; its alert has all of them, and three stamps of 51 x 51 pixels. Association, forced
photometry and all that the database is asked are in it. Not in it: the bus between the actors, their journal but for
the facts that are committed with the rows, and the pixels' way to the associator. Wall seconds from the first detector
given to the last alert acknowledged, and CPU seconds of each process.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path

import asyncpg
import numpy as np

from actors.alert_emitter import AlertEmitter
from actors.associator import Associator
from actors.base import Actor
from actors.lite_emitter import LiteEmitter
from backbone.alert_archive import AlertArchive
from backbone.alert_stream import AlertStream
from backbone.journal import MemoryJournal
from backbone.l1 import VisitDetectorResult
from backbone.l1_postgres import L1Postgres
from bench.alerts import CCDS, PAIRS, SEEN, cpu_of, stamp
from cluster.allocator import keep_freed_memory
from cluster.pixels import MemoryPixels
from cluster.services import EmbeddedKafka, EmbeddedPostgres
from cluster.topology import POOLS
from payloads.alert_production.alert_schema import alert_schema
from schemas.clock import ManualClock, mjd_from_tai
from schemas.events import AlertsReady, AlertsSent, AssociationDue, DiaSourcesReady, Event, LiteAlertsSent
from schemas.identity import DatasetId, dia_source_id, exposure_id
from schemas.image import DiaProducts, Difference, MaskedImage, Psf, VisitImage
from schemas.instrument import camera
from schemas.tables import Table
from schemas.wcs import Wcs
from tests.backbone.kept_objects import gaussian
from tests.backbone.l1_results import DEC, RA, filled, result

STARTED = 1783300923.0
SEEN_NOW = replace(SEEN, exposure_time=30.0, started=STARTED, readout_ended=STARTED + 32.0)
MJD, VISIT = mjd_from_tai(SEEN_NOW.midpoint), SEEN_NOW.visit
SIDE, APART_DEG, EVERY_DAYS = 2000, 0.4, 18.0
POOLS_HERE = "associator", "alert_emitter", "lite_emitter"
WARM = CCDS
"""One detector more, before the clock runs: compiled code is loaded, connections are made."""

DEADLINE_S = 300.0


@dataclass(frozen=True)
class Place:
    """What the processes share. `per_ccd`: alerts."""

    kafka: str
    postgres: str
    folder: Path
    per_ccd: int


def wcs_of(detector: int) -> Wcs:
    """Of patches of sky, each by itself."""
    row, column = divmod(detector, 14)
    center = RA + APART_DEG * column, DEC + APART_DEG * row
    return Wcs(center, (SIDE / 2, SIDE / 2), 0.2 / 3600 * np.diag([-1.0, 1.0]))


def places_of(detector: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where its objects are, pixels, none near another."""
    columns = int(np.ceil(np.sqrt(n)))
    grid = np.stack(np.divmod(np.arange(n), columns), 1) + 0.5
    x, y = (grid * SIDE / columns + np.random.default_rng(detector).uniform(-10.0, 10.0, grid.shape)).T
    return x, y


def year_before(per_ccd: int) -> Iterator[VisitDetectorResult]:
    """The visits that have seen all objects; for the database's sake as of one detector."""
    found = [wcs_of(d).pixel_to_sky(*places_of(d, per_ccd)) for d in range(CCDS + 1)]
    ra, dec = np.concatenate([c[0] for c in found]), np.concatenate([c[1] for c in found])
    known: Table | None = None
    for number in range(PAIRS):
        mjd = MJD - EVERY_DAYS * (PAIRS - number)
        day = str(np.datetime64("1858-11-17") + int(mjd)).replace("-", "")
        one = result(exposure_id(int(day), 1), n=len(ra) + 1, known=known, mjd=mjd)
        for table in (one.objects, one.forced, one.sources[:-1]):
            table["ra"], table["dec"] = ra, dec
        one.sources["timeWithdrawnMjdTai"] = one.forced["timeWithdrawnMjdTai"] = np.nan
        one.objects["lastDiaSourceMjdTai"] = mjd
        known = one.objects
        yield one


def sources_of(detector: int, n: int) -> Table:
    """Each of a known object, all of them to be alerts."""
    rows = filled("DiaSource", n, np.random.default_rng(detector), 0.0)
    for name in (name for name in rows.dtype.names or () if rows.dtype[name].kind == "b"):
        rows[name] = False
    rows["diaSourceId"] = [dia_source_id(VISIT, detector, number) for number in range(n)]
    rows["x"], rows["y"] = places_of(detector, n)
    rows["ra"], rows["dec"] = wcs_of(detector).pixel_to_sky(rows["x"], rows["y"])
    values = {
        "diaObjectId": 0, "ssObjectId": 0, "visit": VISIT, "detector": detector, "band": "r", "midpointMjdTai": MJD,
        "timeProcessedMjdTai": MJD, "timeWithdrawnMjdTai": np.nan, "raErr": 5e-6, "decErr": 5e-6, "ra_dec_Cov": 0.0,
        "psfFlux": 5000.0, "psfFluxErr": 100.0, "scienceFluxErr": 100.0, "trailLength": 0.1, "exposureTime": 30.0,
        "reliability": 0.9,
    }  # fmt: skip
    for name, value in values.items():
        rows[name] = value
    return rows


def due(detector: int) -> AssociationDue:
    """What the associator is told."""
    products = DatasetId(dataset_type="dia_products", instrument="LSSTCam", visit=VISIT, detector=detector)
    sources = DiaSourcesReady(
        group="g1", instrument="LSSTCam", visit=VISIT, detector=detector, observation=SEEN_NOW, count=1,
        products=products, stages={}, summary={},
    )  # fmt: skip
    return AssociationDue(group="g1", visit=VISIT, detector=detector, sources=sources)


async def pixels(per_ccd: int) -> MemoryPixels:
    """What is associated; the same noise and the same stamps in all detectors."""
    rng, store = np.random.default_rng(1), MemoryPixels()
    noise = rng.normal(0.0, 30.0, (SIDE, SIDE)).astype(np.float32)
    image = MaskedImage(noise, np.zeros(noise.shape, np.uint16), np.full(noise.shape, 900.0, np.float32))
    psf, stamps = Psf(gaussian(2.0, 25)[None], 0, noise.shape), tuple(stamp(rng) for _ in range(per_ccd))
    for detector in range(CCDS + 1):
        wcs = wcs_of(detector)
        difference = Difference(image, wcs, psf, "r", SEEN_NOW.midpoint, 30.0)
        science = VisitImage(image, wcs, psf, 0.5, "r", SEEN_NOW.midpoint, 30.0)
        made = DiaProducts(sources_of(detector, per_ccd), stamps, difference, science, {})
        await store.put(due(detector).sources.products, made)
    return store


async def actor_of(pool: str, place: Place) -> Actor:
    """As `cluster.topology` makes them."""
    l1, archive = await L1Postgres.open(place.postgres), AlertArchive(place.folder / "alerts", alert_schema())
    if pool == "associator":
        return Associator(
            camera=camera("LSSTCam"), l1=l1, archive=archive, pixels=await pixels(place.per_ccd),
            chronicle=MemoryJournal(), clock=ManualClock(STARTED + 60.0),
        )  # fmt: skip
    sink = await AlertStream.open(place.kafka, pool, ManualClock(STARTED + 60.0))
    return (AlertEmitter if pool == "alert_emitter" else LiteEmitter)(l1=l1, archive=archive, sink=sink)


async def serve(pool: str, place: Place, inbox: "Queue[Event]", facts: "Queue[Event]") -> None:
    """React until killed, to some events at once."""
    actor = await actor_of(pool, place)

    async def lane() -> None:
        while True:
            for fact in await actor.react(await asyncio.to_thread(inbox.get)):
                facts.put(fact)

    await asyncio.gather(*(lane() for _ in range(POOLS[pool].lanes)))


def run(pool: str, place: Place, inbox: "Queue[Event]", facts: "Queue[Event]") -> None:
    """A process."""
    os.nice(POOLS[pool].nice)
    keep_freed_memory()
    asyncio.run(serve(pool, place, inbox, facts))


def played(detectors: range, inboxes: Mapping[str, "Queue[Event]"], facts: "Queue[Event]", folder: Path) -> list[float]:
    """Wall seconds to the last whole alert and to the last lite one; an alert file is removed when both are sent."""
    start, paths, ends = time.perf_counter(), dict[int, str](), [0.0, 0.0]
    for detector in detectors:
        inboxes["associator"].put(due(detector))
    while len(paths) < len(detectors) or any(paths.values()):
        fact = facts.get(timeout=DEADLINE_S)
        if isinstance(fact, AlertsReady):
            paths[fact.detector] = fact.path
            inboxes["alert_emitter"].put(fact)
        elif isinstance(fact, AlertsSent):
            assert fact.acknowledged == fact.made, fact
            ends[0] = time.perf_counter() - start
            inboxes["lite_emitter"].put(fact)
        elif isinstance(fact, LiteAlertsSent):
            assert not fact.failed, fact
            ends[1] = time.perf_counter() - start
            (folder / "alerts" / paths[fact.detector]).unlink()
            paths[fact.detector] = ""
    return ends


async def filled_database(url: str, per_ccd: int) -> None:
    """The year before."""
    l1 = await L1Postgres.open(url)
    for one in year_before(per_ccd):
        await l1.store(one, [], 1.0)
    await l1.close()
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM ANALYZE")  # as the server does by itself, in a minute
    await connection.execute("CHECKPOINT")
    await connection.close()


def measure(alerts: int, folder: Path) -> None:
    """Warm up, then a visit."""
    per_ccd, context = round(alerts / CCDS), multiprocessing.get_context("spawn")
    with EmbeddedKafka(folder / "broker.log") as kafka, EmbeddedPostgres(folder / "postgres") as postgres:
        asyncio.run(filled_database(postgres.url, per_ccd))
        place = Place(kafka.bootstrap, postgres.url, folder, per_ccd)
        facts, inboxes = context.Queue(), {pool: context.Queue() for pool in POOLS_HERE}
        made = {
            pool: context.Process(target=run, args=(pool, place, inboxes[pool], facts), daemon=True)
            for pool in POOLS_HERE
        }
        for process in made.values():
            process.start()
        played(range(WARM, WARM + 1), inboxes, facts, folder)
        assert postgres.process is not None
        assert kafka.process is not None
        pids = {pool: process.pid or 0 for pool, process in made.items()}
        pids |= {"postgres": postgres.process.pid, "broker": kafka.process.pid}
        before = {name: cpu_of(pid) for name, pid in pids.items()}
        whole, lite = played(range(CCDS), inboxes, facts, folder)
        spent = {name: cpu_of(pid) - before[name] for name, pid in pids.items()}
        for process in made.values():
            process.kill()
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in spent.items())
    print(f"{CCDS * per_ccd} alerts of {CCDS} detectors: all acknowledged after {whole:.2f} s, lite after {lite:.2f} s")
    print(f"    CPU s: {parts}; in all {sum(spent.values()):.2f}; load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, Path(name))

"""How long a system takes to start on a journal that holds a year. `python -m bench.journal [MILLION FACTS]`.

Each visit of 4 detectors leaves what a real one does: plan, assignments, raws, sources, turns, alerts, ends. What the
parts that go on from the journal read when they start is timed with all of it asked for, as a first version did, and
with what can be of open visits.
"""

import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg

from actors import sequencer
from actors.fan_out import OPEN_S
from backbone.journal import PostgresJournal
from cluster.services import EmbeddedPostgres
from schemas.events import (
    AlertsReady,
    AlertsSent,
    AssociationDue,
    DetectorReadOut,
    DiaSourcesReady,
    Event,
    NextVisit,
    RawReady,
    VisitAssigned,
    VisitDone,
)
from schemas.identity import DatasetId
from schemas.image import Observation

DETECTORS = 90, 91, 93, 94
NIGHT_S, NIGHTS = 36_000.0, 365
FIRST = 1.75e9
KINDS = {
    "the keeper's visits": ("VisitDone", "VisitAssigned"),
    "the sequencer's": sequencer._HISTORY,  # noqa: SLF001 - what it asks for
    "the night's progress": ("NextVisit", "VisitDone", "VisitRefused"),
    "whether it was played": ("NextVisit",),
}


def visit(number: int, start: float) -> Iterator[Event]:
    """What is told of a visit."""
    group, first = f"g{number}", 2026010100000 + 2 * number
    plan = NextVisit(
        group=group, instrument="LSSTCam", ra=10.0, dec=-30.0, rotation=0.0, filters="r_57", start_time=start,
        duration=36.0, n_images=2,
    )  # fmt: skip
    yield plan
    seen = Observation(
        instrument="LSSTCam", group=group, visit=first, exposure=first + 1, snap=1, n_snaps=2,
        image_name=f"MC_O_20260101_{number:06d}", physical_filter="r_57", band="r", ra=10.0, dec=-30.0, rotation=0.0,
        exposure_time=15.0, started=start + 18.0, readout_ended=start + 36.0,
    )  # fmt: skip
    for detector in DETECTORS:
        names = [
            DatasetId(dataset_type=kind, instrument="LSSTCam", detector=detector, **{by: first})
            for kind, by in (("raw", "exposure"), ("dia_products", "visit"))
        ]
        sources = DiaSourcesReady(
            group=group, instrument="LSSTCam", visit=first, detector=detector, observation=seen, count=50,
            products=names[1], stages={}, summary={},
        )  # fmt: skip
        yield VisitAssigned(group=group, detector=detector, visit_plan=plan, band="r")
        yield DetectorReadOut(group=group, detector=detector, observation=seen)
        yield RawReady(group=group, detector=detector, observation=seen, raw=names[0], sha256="")
        yield sources
        yield AssociationDue(group=group, visit=first, detector=detector, sources=sources)
        yield AlertsReady(
            group=group, instrument="LSSTCam", visit=first, detector=detector, readout_ended=start + 36.0,
            dia_sources=50, new_dia_objects=2, alerts=40, path="a.avro", stages={},
        )  # fmt: skip
        yield AlertsSent(
            group=group, visit=first, detector=detector, made=40, sent=40, acknowledged=40, failed={},
            readout_ended=start + 36.0, last_acknowledged=start + 46.0,
        )  # fmt: skip
    yield VisitDone(group=group, visit=first, detectors=())


async def fill(dsn: str, facts: int) -> float:
    """A year of nights; when the last fact was told."""
    visits = facts // len(list(visit(0, 0.0)))
    connection, rows, at = await asyncpg.connect(dsn), [], FIRST
    for number in range(visits):
        night, place = divmod(number * NIGHTS / visits, 1.0)
        at = FIRST + night * 86400.0 + place * NIGHT_S
        rows += [(f.event_id, f.kind, f.group, at, f.model_dump_json()) for f in visit(number, at)]
        if len(rows) > 20_000 or number == visits - 1:
            columns = ["event_id", "kind", "grp", "at", "payload"]
            await connection.copy_records_to_table("journal", records=rows, columns=columns)
            rows = []
    await connection.execute("VACUUM ANALYZE journal")
    await connection.close()
    return at


async def measure(dsn: str, facts: int) -> None:
    """All, and the last two days."""
    journal = await PostgresJournal.open(dsn)
    now = await fill(dsn, facts)
    for what, kinds in KINDS.items():
        for since in (-math.inf, now - OPEN_S):
            start = time.perf_counter()
            found = len(await journal.facts(*kinds, since=since))
            print(f"{what:24s} since {since:.0f}: {found:8d} facts, {time.perf_counter() - start:8.3f} s", flush=True)
    start = time.perf_counter()
    await journal.entries(since=now - NIGHT_S)
    print(f"the last night's entries, for its report: {time.perf_counter() - start:.3f} s")
    start = time.perf_counter()
    await journal.owed()
    print(f"what is owed: {time.perf_counter() - start:.3f} s")
    await journal.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder)) as server:
            asyncio.run(measure(server.url, round(1e6 * float(sys.argv[1] if len(sys.argv) > 1 else 1.0))))

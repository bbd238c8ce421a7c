"""One thing on the sky is one DIAObject, in whatever order what is known of it comes: on either database.

Three visits look at one sky, each shifted, so that a thing falls now on one detector and now on its neighbour. Sources
come in any order, told twice or late; hosts die and are made anew; the sequencer lets visit-detectors through.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.associator import Associator
from actors.sequencer import Sequencer
from backbone.alert_archive import AlertArchive
from backbone.journal import Journal, MemoryJournal, PostgresJournal
from backbone.l1 import L1Database, Stored, VisitDetectorResult
from backbone.l1_memory import L1Memory
from backbone.l1_postgres import L1Postgres
from cluster.pixels import MemoryPixels
from payloads.alert_production.alert_schema import alert_schema
from schemas.clock import ManualClock, mjd_from_tai
from schemas.events import AlertsReady, AssociationDue, DiaSourcesReady, Event, NextVisit, VisitAssigned
from schemas.identity import DatasetId, dia_source_id
from schemas.image import DiaProducts, Observation
from schemas.instrument import camera
from tests.actors.association_place import PROCESSED, STARTED, VISIT, WCS, products

CAMERA = camera("LSSTCam")
APART_S = 37.0
SEEN_BY: tuple[dict[int, tuple[int, ...]], ...] = (
    {94: (0, 1), 93: (2, 3)},
    {94: (0, 2), 93: (1, 3)},
    {94: (3,), 93: (0, 1, 2)},
)
"""Of each visit: which things each detector sees, by their place among the sources of `products`."""
N_THINGS, N_SOURCES = 4, 12


def told(number: int, detector: int) -> DiaSourcesReady:
    group, visit, started = f"g{number}", VISIT + 2 * number, STARTED + APART_S * number
    name = DatasetId(dataset_type="dia_products", instrument="LSSTCam", visit=visit, detector=detector)
    seen = Observation(
        instrument="LSSTCam", group=group, visit=visit, exposure=visit + 1, snap=1, n_snaps=2,
        image_name=f"MC_O_20260705_{2 * number + 2:06d}", physical_filter="r_57", band="r", ra=150.0, dec=2.2,
        rotation=0.0, exposure_time=15.0, started=started + 18.0, readout_ended=started + 36.0,
    )  # fmt: skip
    return DiaSourcesReady(
        group=group, instrument="LSSTCam", visit=visit, detector=detector, observation=seen,
        count=len(SEEN_BY[number][detector]), products=name, stages={}, summary={},
    )  # fmt: skip


def assigned(number: int, detector: int) -> VisitAssigned:
    plan = NextVisit(
        group=f"g{number}", instrument="LSSTCam", ra=150.0, dec=2.2, rotation=0.0, filters="r_57",
        start_time=STARTED + APART_S * number, duration=36.0, n_images=2,
    )  # fmt: skip
    return VisitAssigned(group=plan.group, detector=detector, visit_plan=plan, band="r")


def made(number: int, detector: int) -> DiaProducts:
    """What a visit-detector shows: its things, 0.1 arcsec from where the visit before saw them."""
    whole = products(VISIT + 2 * number, STARTED + APART_S * number)
    places = list(SEEN_BY[number][detector])
    sources = whole.sources[places]
    sources["detector"] = detector
    sources["diaSourceId"] = [dia_source_id(VISIT + 2 * number, detector, n) for n in range(len(places))]
    sources["dec"] += (-1) ** number * 0.05 / 3600.0
    sources["midpointMjdTai"] = mjd_from_tai(whole.difference.midpoint)
    return replace(whole, sources=sources, stamps=tuple(whole.stamps[place] for place in places))


@dataclass
class Night:
    """The actors, and what is on its way to them."""

    l1: L1Database
    journal: Journal
    folder: Path
    pixels: MemoryPixels = field(default_factory=MemoryPixels)
    clock: ManualClock = field(default_factory=lambda: ManualClock(PROCESSED + 2 * APART_S))
    on_their_way: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.anew()

    def anew(self) -> None:
        """Actors that remember nothing."""
        self.sequencer = Sequencer(camera=CAMERA, chronicle=self.journal, clock=self.clock)
        self.associator = Associator(
            camera=CAMERA, l1=self.l1, archive=AlertArchive(self.folder, alert_schema()), pixels=self.pixels,
            chronicle=self.journal, clock=self.clock,
        )  # fmt: skip

    async def begin(self) -> None:
        """All is assigned and measured; of the sources nobody has heard."""
        for number, seen_by in enumerate(SEEN_BY):
            for detector in seen_by:
                await self.journal.append([assigned(number, detector)], {}, self.clock.now())
                await self.sequencer.react(assigned(number, detector))
                await self.pixels.put(told(number, detector).products, made(number, detector))
                self.on_their_way.append(told(number, detector))

    async def deliver(self, event: Event) -> None:
        """Have whom it concerns react; what follows is on its way."""
        await self.journal.append([event], {}, self.clock.now())
        actor = self.associator if isinstance(event, AssociationDue) else self.sequencer
        self.on_their_way += await actor.react(event)


class Told(L1Memory):
    """Facts come into the journal with the rows, as in PostgreSQL."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    async def store(self, result: VisitDetectorResult, facts: Sequence[Event], at: float) -> Stored:
        """See `L1Database`."""
        stored = await super().store(result, facts, at)
        if stored is Stored.ADDED:
            await self._journal.append(facts, {}, at)
        return stored


@asynccontextmanager
async def kept_in(kind: str, dsn: str) -> AsyncIterator[tuple[L1Database, Journal]]:
    """A database and a journal with nothing in them."""
    if kind == "memory":
        journal_in_memory = MemoryJournal()
        yield Told(journal_in_memory), journal_in_memory
        return
    l1, journal = await L1Postgres.open(dsn), await PostgresJournal.open(dsn)
    official = '"DiaSource", "DiaObject", "DiaObjectLast", "DiaForcedSource", "SSSource"'
    await l1._pool.execute(f"TRUNCATE visit_detector, journal, delivery, {official} CASCADE")
    try:
        yield l1, journal
    finally:
        await l1.close()
        await journal.close()


async def play(data: st.DataObject, kind: str, dsn: str, folder: Path) -> None:
    """Everything is delivered at least once, in an order that `data` chooses; then every thing is one object."""
    async with kept_in(kind, dsn) as (l1, journal):
        night = Night(l1, journal, folder)
        await night.begin()
        while night.on_their_way:
            event = night.on_their_way.pop(data.draw(st.integers(0, len(night.on_their_way) - 1), label="which next"))
            await night.deliver(event)
            if data.draw(st.integers(0, 5), label="again") == 5 and not isinstance(event, AlertsReady):
                night.on_their_way.append(event.model_copy())
            if data.draw(st.integers(0, 5), label="die") == 5:
                night.anew()
        await _each_thing_is_one_object(l1)


async def _each_thing_is_one_object(l1: L1Database) -> None:
    objects: dict[int, list[int]] = defaultdict(list)
    for number, seen_by in enumerate(SEEN_BY):
        for detector, things in seen_by.items():
            sources = await l1.sources_of(VISIT + 2 * number, detector)
            for thing, source in zip(things, sources, strict=True):
                objects[thing].append(int(source["diaObjectId"]))
    assert sum(map(len, objects.values())) == N_SOURCES
    firsts = {thing: dia_source_id(VISIT, d, n) for d, things in SEEN_BY[0].items() for n, thing in enumerate(things)}
    assert {thing: set(ids) for thing, ids in objects.items()} == {thing: {first} for thing, first in firsts.items()}
    valid = await l1.objects_in(*WCS.crval, 0.1)
    assert sorted(valid["diaObjectId"]) == sorted(firsts.values())
    assert (await l1.objects_of(valid["diaObjectId"]))["nDiaSources"].tolist() == [len(SEEN_BY)] * N_THINGS
    assert np.unique(valid["diaObjectId"]).size == N_THINGS


@pytest.mark.parametrize("kind", ["memory", "postgres"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_thing_is_one_object_in_whatever_order_its_visits_come(
    kind: str, dsn: str, tmp_path: Path, data: st.DataObject
) -> None:
    asyncio.run(play(data, kind, dsn, tmp_path))

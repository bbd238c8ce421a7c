"""The way from measured sources to committed rows, with the real database in memory and the real archive on disk."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import fastavro
import numpy as np
import pytest

from actors.associator import Associator
from backbone.alert_archive import AlertArchive
from backbone.journal import MemoryJournal
from backbone.l1 import Ids, Stored, VisitDetectorResult
from backbone.l1_memory import L1Memory
from cluster.pixels import MemoryPixels
from payloads.alert_production.alert_schema import alert_schema
from schemas.clock import ManualClock, mjd_from_tai
from schemas.errors import BadData, Transient
from schemas.events import AlertsReady, AssociationDue, DiaSourcesReady, Event
from schemas.identity import dia_source_id
from schemas.image import DiaProducts, Difference, MaskedImage, Psf, Stamp, VisitImage
from schemas.tables import Table, empty
from schemas.wcs import Wcs
from tests.backbone.kept_objects import gaussian
from tests.backbone.l1_results import filled

VISIT, LATER = 2026070500001, 2026070500003
STARTED, PROCESSED = 1783300923.0, 1783300970.0
SHAPE = (201, 181)
WCS = Wcs((150.0, 2.2), (90.0, 100.0), 0.2 / 3600 * np.diag([-1.0, 1.0]))
PSF = Psf(gaussian(2.0)[None], 0, SHAPE)
X, Y = np.array([50.0, 90.0, 120.0, 60.0]), np.array([60.0, 100.0, 150.0, 140.0])
"""Where the four sources are, pixels; the last one is not believed in."""
N_ALERTS = 3


def noise(seed: int) -> MaskedImage:
    image = np.random.default_rng(seed).normal(0.0, 30.0, SHAPE).astype(np.float32)
    return MaskedImage(image, np.zeros(SHAPE, np.uint16), np.full(SHAPE, 900.0, np.float32))


def stamp() -> Stamp:
    small = MaskedImage(np.zeros((31, 31), np.float32), np.zeros((31, 31), np.uint16), np.ones((31, 31), np.float32))
    return Stamp(small, small, small, WCS, *3 * [gaussian(2.0)])


def sources(visit: int, midpoint: float) -> Table:
    rows = filled("DiaSource", len(X), np.random.default_rng(visit), 0.0)
    for name in (n for n in rows.dtype.names or () if rows.dtype[n].kind == "b"):
        rows[name] = False
    rows["diaSourceId"] = [dia_source_id(visit, 94, n) for n in range(len(X))]
    rows["diaObjectId"] = rows["ssObjectId"] = 0
    rows["visit"], rows["detector"], rows["band"] = visit, 94, "r"
    rows["midpointMjdTai"] = mjd_from_tai(midpoint)
    rows["timeProcessedMjdTai"], rows["timeWithdrawnMjdTai"] = mjd_from_tai(PROCESSED), np.nan
    rows["x"], rows["y"] = X, Y
    rows["ra"], rows["dec"] = WCS.pixel_to_sky(X, Y)
    rows["raErr"] = rows["decErr"] = 0.02 / 3600
    rows["ra_dec_Cov"] = 0.0
    rows["psfFlux"], rows["psfFluxErr"], rows["scienceFluxErr"] = 5000.0, 100.0, 100.0
    rows["trailLength"], rows["exposureTime"] = 0.1, 30.0
    rows["reliability"] = [0.9, 0.8, 0.95, 0.1]
    return rows


def products(visit: int = VISIT, started: float = STARTED) -> DiaProducts:
    midpoint = started + 16.5
    difference = Difference(noise(1), WCS, PSF, "r", midpoint, 30.0)
    science = VisitImage(noise(2), WCS, PSF, 0.5, "r", midpoint, 30.0)
    return DiaProducts(sources(visit, midpoint), tuple(stamp() for _ in X), difference, science, {})


@dataclass
class Watched:
    """The archive and the database, and in which order they were written. `lost`: the database does not answer."""

    folder: Path
    journal: MemoryJournal
    calls: list[str] = field(default_factory=list)
    lost: bool = False
    l1: L1Memory = field(default_factory=L1Memory)

    def __post_init__(self) -> None:
        self.archive = AlertArchive(self.folder, alert_schema())
        self._store = self.l1.store
        self.l1.store = self.store  # type: ignore[method-assign] - watched, else as it is

    def write(self, visit: int, detector: int, records: Iterable[bytes], ids: Ids, keys: Ids) -> str:
        path = self.archive.write(visit, detector, records, ids, keys)
        self.calls.append("written")
        return path

    def read(self, path: str) -> list[bytes]:
        return self.archive.read(path)

    async def store(self, result: VisitDetectorResult, facts: Sequence[Event], at: float) -> Stored:
        """In PostgreSQL the facts come into the journal with the rows; so they do here."""
        if self.lost:
            raise Transient("the L1 database does not answer")
        stored = await self._store(result, facts, at)
        self.calls.append(stored.value)
        if stored is Stored.ADDED:
            await self.journal.append(facts, {}, at)
        return stored


@dataclass
class Place:
    """All that an associator is given; `associator` makes a new one, which remembers nothing."""

    kept: Watched
    pixels: MemoryPixels = field(default_factory=MemoryPixels)
    clock: ManualClock = field(default_factory=lambda: ManualClock(PROCESSED))

    def associator(self) -> Associator:
        return Associator(
            l1=self.kept.l1, archive=self.kept, pixels=self.pixels, chronicle=self.kept.journal, clock=self.clock
        )

    async def react(self, event: AssociationDue) -> AlertsReady:
        (fact,) = await self.associator().react(event)
        assert isinstance(fact, AlertsReady)
        return fact

    def alerts(self, fact: AlertsReady) -> list[dict[str, object]]:
        found = []
        for record in self.kept.read(fact.path):
            alert = fastavro.schemaless_reader(io.BytesIO(record), alert_schema(), None)
            assert isinstance(alert, dict)
            found.append(alert)
        return found


@pytest.fixture
def place(tmp_path: Path, journal: MemoryJournal) -> Place:
    return Place(Watched(tmp_path, journal))


@pytest.fixture
def due(measured: Callable[..., DiaSourcesReady]) -> Callable[..., AssociationDue]:
    def make(group: str = "g1", visit: int = VISIT, started: float = STARTED) -> AssociationDue:
        told = measured(group, visit=visit)
        seen = replace(told.observation, started=started + 18.0, readout_ended=started + 36.0)
        told = told.model_copy(update={"observation": seen})
        return AssociationDue(group=group, visit=visit, detector=94, sources=told)

    return make


async def ready(place: Place, event: AssociationDue, started: float = STARTED) -> AssociationDue:
    """Its pixels in the store."""
    await place.pixels.put(event.sources.products, products(event.visit, started))
    return event


async def test_the_fact_counts_what_is_committed(place: Place, due: Callable[..., AssociationDue]) -> None:
    event = await ready(place, due())
    fact = await place.react(event)
    assert (fact.group, fact.visit, fact.detector) == ("g1", VISIT, 94)
    assert (fact.dia_sources, fact.new_dia_objects, fact.alerts) == (4, 4, N_ALERTS)
    assert fact.readout_ended == event.sources.observation.readout_ended
    assert set(fact.stages) == {"associate", "forced_photometry", "make_packets"}
    counts = (await place.kept.l1.counts())[VISIT, 94]
    assert (counts.dia_sources, counts.new_dia_objects, counts.dia_forced_sources) == (4, 4, 4)
    assert (counts.alerts, counts.acknowledged) == (N_ALERTS, 0)


async def test_the_fact_is_committed_with_the_rows_and_the_pixels_are_dropped(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event = await ready(place, due())
    fact = await place.react(event)
    assert place.kept.l1.facts == [fact]
    assert await place.pixels.get(event.sources.products) is None


async def test_the_packets_are_those_of_the_believed_sources_in_the_outboxs_order(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    fact = await place.react(await ready(place, due()))
    outbox = await place.kept.l1.outbox(VISIT, 94)
    assert outbox is not None
    assert outbox.path == fact.path
    expected = [dia_source_id(VISIT, 94, n) for n in range(N_ALERTS)]
    assert [alert["diaSourceId"] for alert in place.alerts(fact)] == expected == list(outbox.alert_ids)


async def test_a_second_visit_finds_the_objects_of_the_first_and_tells_their_history(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    await place.react(await ready(place, due()))
    later = STARTED + 3600.0
    place.clock.set_to(later + 40.0)
    fact = await place.react(await ready(place, due("g2", LATER, later), later))
    assert fact.new_dia_objects == 0
    for n, alert in enumerate(place.alerts(fact)):
        before, forced = alert["prvDiaSources"], alert["prvDiaForcedSources"]
        assert isinstance(before, list)
        assert isinstance(forced, list)
        assert [row["diaSourceId"] for row in before] == [dia_source_id(VISIT, 94, n)]
        assert [row["visit"] for row in forced] == [VISIT]


async def test_the_file_is_whole_before_anything_is_committed(place: Place, due: Callable[..., AssociationDue]) -> None:
    await place.react(await ready(place, due()))
    assert place.kept.calls == ["written", "Added"]


async def test_a_file_that_cannot_be_written_leaves_nothing_committed(
    tmp_path: Path, journal: MemoryJournal, due: Callable[..., AssociationDue]
) -> None:
    (tmp_path / "file").touch()
    place = Place(Watched(tmp_path / "file", journal))
    event = await ready(place, due())
    with pytest.raises(Transient, match="2026070500001_094"):
        await place.associator().react(event)
    assert not await place.kept.l1.contains(VISIT, 94)
    assert await place.pixels.get(event.sources.products) is not None


async def test_a_database_that_does_not_answer_is_transient_and_the_next_attempt_commits(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event = await ready(place, due())
    place.kept.lost = True
    with pytest.raises(Transient, match="L1 database"):
        await place.associator().react(event)
    place.kept.lost = False
    fact = await place.react(event)
    assert place.kept.calls == ["written", "written", "Added"]
    assert len(place.alerts(fact)) == N_ALERTS


async def test_a_new_associator_says_what_was_committed_and_commits_nothing(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event = await ready(place, due())
    first = await place.react(event)
    place.clock.set_to(PROCESSED + 500.0)
    assert await place.react(event) == first
    assert place.kept.calls == ["written", "Added"]


async def test_pixels_left_by_a_death_after_the_commit_are_dropped_by_the_next(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event = await ready(place, due())
    first = await place.react(event)
    await ready(place, event)  # as if it had died before it dropped them
    assert await place.react(event) == first
    assert await place.pixels.get(event.sources.products) is None


async def test_another_that_committed_meanwhile_is_believed(
    place: Place, due: Callable[..., AssociationDue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the same visit-detector, the first not yet dead: the second finds at the commit that it came late."""
    event = await ready(place, due())
    first = await place.react(event)
    await ready(place, event)

    async def not_yet(*_: object) -> bool:
        return False

    async def no_objects(*_: object) -> Table:
        return empty("DiaObjectLast", 0)

    async def no_history(*_: object) -> tuple[Table, Table]:
        return empty("DiaSource", 0), empty("DiaForcedSource", 0)

    monkeypatch.setattr(place.kept.l1, "contains", not_yet)
    monkeypatch.setattr(place.kept.l1, "objects_in", no_objects)
    monkeypatch.setattr(place.kept.l1, "history_of", no_history)
    assert await place.react(event) == first
    assert place.kept.calls == ["written", "Added", "written", "Exists"]
    assert (await place.kept.l1.counts())[VISIT, 94].dia_sources == 4


async def test_pixels_that_are_gone_are_bad_data_and_named(place: Place, due: Callable[..., AssociationDue]) -> None:
    with pytest.raises(BadData, match=f"visit {VISIT} detector 94: its pixels are not in the pixel store"):
        await place.associator().react(due())
    assert place.kept.calls == []


async def test_a_source_outside_its_detector_is_bad_data_and_commits_nothing(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event, bad = due(), products()
    bad.sources["dec"][1] += 0.2
    await place.pixels.put(event.sources.products, bad)
    with pytest.raises(
        BadData, match=rf"DiaSource {dia_source_id(VISIT, 94, 1)} at ra .* 0\.2\d\d deg from the detector"
    ):
        await place.associator().react(event)
    assert not await place.kept.l1.contains(VISIT, 94)


async def test_photometry_is_not_forced_on_objects_not_seen_for_a_year(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event, made = due(), products()
    await place.pixels.put(event.sources.products, made)
    await place.react(event)
    objects = await place.kept.l1.objects_in(*WCS.crval, 1.0)
    for days, forced in ((300.0, 4), (400.0, 0)):
        visit = VISIT + int(days)
        later = due(f"g{visit}", visit, STARTED + days * 86400.0)
        empty_sky = products(visit, STARTED + days * 86400.0)
        empty_sky = replace(empty_sky, sources=empty_sky.sources[:0], stamps=())
        await place.pixels.put(later.sources.products, empty_sky)
        await place.react(later)
        _, found = await place.kept.l1.history_of(objects["diaObjectId"], mjd_from_tai(STARTED) + 1.0)
        assert np.count_nonzero(found["visit"] == visit) == forced


async def test_sources_without_a_position_are_bad_data_and_commit_nothing(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event, bad = due(), products()
    bad.sources["ra"][2] = np.nan
    await place.pixels.put(event.sources.products, bad)
    with pytest.raises(BadData, match=str(dia_source_id(VISIT, 94, 2))):
        await place.associator().react(event)
    assert not await place.kept.l1.contains(VISIT, 94)

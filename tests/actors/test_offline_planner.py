from collections.abc import Callable
from typing import Any

import pytest

from actors.offline_planner import OfflinePlanner
from backbone.journal import MemoryJournal
from schemas.clock import ManualClock
from schemas.events import AlertsReady, DetectorFailed, Event, OfflineDue, OfflineFailed, RawArchived, VisitAssigned
from schemas.identity import DatasetId
from schemas.image import Observation

Observed = Callable[..., Observation]
VISIT = 2026070500001


@pytest.fixture
def planner(journal: MemoryJournal) -> OfflinePlanner:
    return OfflinePlanner(chronicle=journal, clock=ManualClock(10.0))


@pytest.fixture
def archived(observation: Observed) -> Callable[..., RawArchived]:
    def make(snap: int, detector: int = 94, **changes: Any) -> RawArchived:
        seen = observation(visit=VISIT, snap=snap)
        seen = Observation(**{**vars(seen), **changes})
        raw = DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=VISIT + snap, detector=detector)
        return RawArchived(group="g1", raw=raw, uri="file:///raw.fits", sha256="", observation=seen)

    return make


def failed(detector: int = 94, stage: str = "ccd_worker") -> DetectorFailed:
    return DetectorFailed(group="g1", visit=None, detector=detector, stage=stage, reason="died")


def ready() -> AlertsReady:
    return AlertsReady(
        group="g1", instrument="LSSTCam", visit=VISIT, detector=94, readout_ended=1.0, dia_sources=1, new_dia_objects=1,
        alerts=1, path="", stages={},
    )  # fmt: skip


@pytest.fixture
async def visit(journal: MemoryJournal, assigned: Callable[..., VisitAssigned]) -> None:
    """It was announced."""
    await journal.append([assigned(94), assigned(93)], {}, 1.0)


async def told(planner: OfflinePlanner, journal: MemoryJournal, *events: Event) -> list[OfflineDue]:
    """What the planner says to some events, each of which the journal has first."""
    said: list[Event] = []
    for event in events:
        await journal.append([event], {}, 5.0)
        said += await planner.react(event)
    return [event for event in said if isinstance(event, OfflineDue)]


@pytest.mark.usefixtures("visit")
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
async def test_it_is_due_once_failed_and_archived_in_whatever_order(
    planner: OfflinePlanner, journal: MemoryJournal, archived: Callable[..., RawArchived], order: tuple[int, ...]
) -> None:
    events = [failed(), archived(0), archived(1)]
    (due,) = await told(planner, journal, *(events[k] for k in order))
    assert (due.visit, due.detector, due.observation.snap) == (VISIT, 94, 1)
    assert due.reason == "ccd_worker: died"


@pytest.mark.usefixtures("visit")
async def test_it_waits_for_the_last_raw(
    planner: OfflinePlanner, journal: MemoryJournal, archived: Callable[..., RawArchived]
) -> None:
    assert await told(planner, journal, failed(), archived(1), archived(0, detector=93)) == []


async def test_what_succeeded_is_not_redone(
    planner: OfflinePlanner, journal: MemoryJournal, archived: Callable[..., RawArchived]
) -> None:
    assert await told(planner, journal, archived(0), archived(1)) == []
    await journal.append([ready()], {}, 5.0)
    assert await told(planner, journal, failed()) == []
    assert await planner.react(failed()) == [ready()]  # committed, and maybe not told to those who send it


@pytest.mark.usefixtures("visit")
@pytest.mark.parametrize("stage", ["canceled", "alert_emitter"])
async def test_what_nobody_wants_or_what_is_committed_is_not_redone(
    planner: OfflinePlanner, journal: MemoryJournal, archived: Callable[..., RawArchived], stage: str
) -> None:
    assert await told(planner, journal, archived(0), archived(1), failed(stage=stage)) == []


async def test_raws_of_a_refused_visit_make_nothing_due(
    planner: OfflinePlanner, journal: MemoryJournal, archived: Callable[..., RawArchived]
) -> None:
    assert await told(planner, journal, failed(), archived(0, band=""), archived(1, band="")) == []


@pytest.mark.usefixtures("visit")
async def test_pixels_that_came_when_their_visit_was_given_up_are_redone_in_its_band(
    planner: OfflinePlanner, journal: MemoryJournal, archived: Callable[..., RawArchived]
) -> None:
    (due,) = await told(planner, journal, failed(), archived(0, band=""), archived(1, band=""))
    assert due.observation.band == "r"


@pytest.mark.usefixtures("visit")
async def test_what_was_lost_before_its_commit_is_redone_three_times(
    planner: OfflinePlanner, journal: MemoryJournal, archived: Callable[..., RawArchived]
) -> None:
    await told(planner, journal, failed(), archived(0), archived(1))
    again = [
        OfflineFailed(group="g1", visit=VISIT, detector=94, stage="associator", reason="no pixels", redone=n)
        for n in (1, 2, 3)
    ]
    assert [due.redone for due in await told(planner, journal, *again)] == [2, 3]


@pytest.mark.usefixtures("visit")
async def test_a_new_planner_remembers_what_failed(
    journal: MemoryJournal, archived: Callable[..., RawArchived]
) -> None:
    await journal.append([failed(), archived(0)], {}, 5.0)
    new = OfflinePlanner(chronicle=journal, clock=ManualClock(10.0))
    assert len(await told(new, journal, archived(1))) == 1

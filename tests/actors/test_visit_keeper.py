from collections.abc import Callable
from dataclasses import replace

import pytest

from actors.fan_out import OPEN_S
from actors.visit_keeper import PIXELS_LATE_S, VisitKeeper
from backbone.journal import MemoryJournal
from schemas.clock import NightClock
from schemas.events import (
    AlertsSent,
    DetectorFailed,
    DetectorReadOut,
    Event,
    NextVisitCanceled,
    RawReady,
    VisitAmended,
    VisitAssigned,
    VisitDone,
)
from schemas.identity import DatasetId
from schemas.image import Observation

Assigned = Callable[..., VisitAssigned]


class RunningClock:
    """Shows what it is set to; its night runs with the wall."""

    tai = 0.0

    def now(self) -> float:
        return self.tai

    def wall_seconds(self, seconds: float) -> float:
        return NightClock(0.0, 0.0).wall_seconds(seconds)


@pytest.fixture
def clock() -> RunningClock:
    return RunningClock()


def sent(detector: int) -> AlertsSent:
    return AlertsSent(
        group="g1", visit=2026070500001, detector=detector, made=5, sent=5, acknowledged=5, failed={},
        readout_ended=136.0, last_acknowledged=150.0,
    )  # fmt: skip


def failed(detector: int) -> DetectorFailed:
    return DetectorFailed(group="g1", visit=None, detector=detector, stage="camera_reader", reason="8 of 16 amplifiers")


async def told(keeper: VisitKeeper, journal: MemoryJournal, *events: Event) -> list[Event]:
    """Have the journal and then the keeper hear of events; what the keeper says to the last one."""
    answer: list[Event] = []
    await journal.append(events, {}, 1.0)
    for event in events:
        answer = list(await keeper.react(event))
    return answer


@pytest.fixture
def keeper(journal: MemoryJournal, clock: RunningClock) -> VisitKeeper:
    return VisitKeeper(chronicle=journal, clock=clock)


async def test_a_visit_is_done_when_its_last_detector_has_a_result(
    keeper: VisitKeeper, journal: MemoryJournal, assigned: Assigned
) -> None:
    assert await told(keeper, journal, assigned(90), assigned(94), sent(90)) == []
    (done,) = await told(keeper, journal, failed(94))
    assert isinstance(done, VisitDone)
    ninety, ninety_four = done.detectors
    assert (ninety.alerts_made, ninety.alerts_acknowledged, ninety.gave_up) == (5, 5, "")
    assert "8 of 16 amplifiers" in ninety_four.gave_up


async def test_a_visit_is_done_once(keeper: VisitKeeper, journal: MemoryJournal, assigned: Assigned) -> None:
    await told(keeper, journal, assigned(90), sent(90))
    assert await told(keeper, journal, sent(90)) == []


async def test_a_new_keeper_counts_on(journal: MemoryJournal, clock: RunningClock, assigned: Assigned) -> None:
    await journal.append([assigned(90), assigned(94), sent(90)], {}, 1.0)
    (done,) = await told(VisitKeeper(chronicle=journal, clock=clock), journal, sent(94))
    assert isinstance(done, VisitDone)
    assert [m.alerts_made for m in done.detectors] == [5, 5]


async def test_a_canceled_visit_gives_up_what_has_no_pixels(
    keeper: VisitKeeper, journal: MemoryJournal, assigned: Assigned, observation: Callable[..., Observation]
) -> None:
    raw = DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=2026070500001, detector=90)
    ready = RawReady(group="g1", detector=90, observation=observation(snap=1), raw=raw, sha256="")
    events = await told(keeper, journal, assigned(90), assigned(94), ready, NextVisitCanceled(group="g1"))
    assert [(e.detector, e.stage) for e in events if isinstance(e, DetectorFailed)] == [(94, "canceled")]


@pytest.mark.parametrize(("snap", "band", "given_up"), [(1, "r", []), (0, "r", [94]), (1, "", [94])])
async def test_what_was_exposed_to_the_end_before_its_visit_was_canceled_is_waited_for(
    keeper: VisitKeeper, journal: MemoryJournal, assigned: Assigned, observation: Callable[..., Observation],
    snap: int, band: str, given_up: list[int],
) -> None:  # fmt: skip
    """Without a band, its pixels are only archived."""
    await told(keeper, journal, assigned(94))
    seen = replace(observation(snap=snap), band=band)
    await journal.append([DetectorReadOut(group="g1", detector=94, observation=seen)], {}, 1.0)
    events = await told(keeper, journal, NextVisitCanceled(group="g1"))
    assert [e.detector for e in events if isinstance(e, DetectorFailed)] == given_up


async def test_pixels_that_never_come_are_given_up_in_time(
    keeper: VisitKeeper, journal: MemoryJournal, clock: RunningClock, assigned: Assigned
) -> None:
    await told(keeper, journal, assigned(90))
    clock.tai = 100.0 + 36.0 + PIXELS_LATE_S - 1.0
    assert keeper.overdue() == []
    clock.tai += 2.0
    (given_up,) = keeper.overdue()
    assert isinstance(given_up, DetectorFailed)
    assert "pixels not complete" in given_up.reason


async def test_a_new_keeper_gives_the_pixels_of_open_visits_as_long_again_and_no_longer(
    journal: MemoryJournal, clock: RunningClock, assigned: Assigned
) -> None:
    over = VisitDone(group="g0", visit=None, detectors=())
    await journal.append([assigned(90).model_copy(update={"group": "g0"}), over, assigned(94)], {}, 1.0)
    clock.tai = 100.0 + 36.0 + 10.0 * PIXELS_LATE_S
    keeper = VisitKeeper(chronicle=journal, clock=clock)
    await keeper.take_up()
    clock.tai += PIXELS_LATE_S - 1.0
    assert keeper.overdue() == []
    clock.tai += 2.0
    assert [(e.group, e.detector) for e in keeper.overdue() if isinstance(e, DetectorFailed)] == [("g1", 94)]


async def test_a_new_keeper_takes_up_no_visit_of_more_than_two_days_ago(
    journal: MemoryJournal, clock: RunningClock, assigned: Assigned
) -> None:
    await journal.append([assigned(90)], {}, 1.0)
    clock.tai = 1.0 + OPEN_S + 1.0
    keeper = VisitKeeper(chronicle=journal, clock=clock)
    await keeper.take_up()
    clock.tai += 2.0 * PIXELS_LATE_S
    assert keeper.overdue() == []


async def test_a_visit_done_long_ago_is_not_done_again(
    journal: MemoryJournal, clock: RunningClock, assigned: Assigned
) -> None:
    await journal.append([assigned(90), sent(90), VisitDone(group="g1", visit=2026070500001, detectors=())], {}, 1.0)
    clock.tai = 1.0 + OPEN_S + 1.0
    keeper = VisitKeeper(chronicle=journal, clock=clock)
    await keeper.take_up()
    assert await keeper.react(sent(90)) == []


async def test_a_detector_redone_after_its_visit_amends_the_manifest(
    keeper: VisitKeeper, journal: MemoryJournal, assigned: Assigned
) -> None:
    await told(keeper, journal, assigned(90), assigned(94), sent(90))
    done = await told(keeper, journal, failed(94))
    await journal.append(done, {}, 2.0)
    (amended,) = await told(keeper, journal, sent(94).model_copy(update={"redone": 1}))
    assert isinstance(amended, VisitAmended)
    assert (amended.detector, amended.manifest.alerts_acknowledged, amended.manifest.gave_up) == (94, 5, "")


async def test_a_detector_redone_before_its_visit_ends_is_in_the_manifest(
    keeper: VisitKeeper, journal: MemoryJournal, assigned: Assigned
) -> None:
    await told(keeper, journal, assigned(90), assigned(94), failed(94))
    await told(keeper, journal, sent(94).model_copy(update={"redone": 1}))
    (done,) = await told(keeper, journal, sent(90))
    assert isinstance(done, VisitDone)
    assert [d.gave_up for d in done.detectors] == ["", ""]

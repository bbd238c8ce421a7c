"""When a catch-up is due: the rule, with a clock and a loop's time that stand where they are set."""

import asyncio

import pytest
from structlog.testing import capture_logs

from cluster.catch_up import GRACE_S, RETRY_S, SILENT_S, CatchUpTimes
from schemas.clock import ManualClock
from schemas.events import (
    CatchUpDue,
    CaughtUp,
    DetectorReadOut,
    Event,
    NextVisit,
    RawNotArchived,
    RawReady,
    VisitDone,
    VisitRefused,
)
from schemas.identity import DatasetId
from schemas.image import Observation

NOW = 1000.0
RAW = DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=2026070500001, detector=94)
LOST = RawNotArchived(group="g1", raw=RAW, reason="8 of 16 amplifiers came")
DONE = VisitDone(group="g1", visit=2026070500001, detectors=())
SEEN = Observation(
    instrument="LSSTCam", group="g1", visit=2026070500001, exposure=2026070500001, snap=0, n_snaps=1,
    image_name="MC_O_20260705_000001", physical_filter="r_57", band="r", ra=10.0, dec=-30.0, rotation=0.0,
    exposure_time=30.0, started=900.0, readout_ended=932.0,
)  # fmt: skip
ANNOUNCED = NextVisit(
    group="g1", instrument="LSSTCam", ra=10.0, dec=-30.0, rotation=0.0, filters="r_57", start_time=900.0, duration=32.0,
    n_images=1,
)  # fmt: skip
PULLED = DetectorReadOut(group="g1", detector=94, observation=SEEN)
READY = RawReady(group="g1", detector=94, observation=SEEN, raw=RAW, sha256="00")


class Night:
    """The rule, and what it is told."""

    def __init__(self) -> None:
        self.clock = ManualClock(NOW)
        self.times = CatchUpTimes(self.clock)
        self.wall = 0.0

    def hear(self, *events: Event) -> None:
        for event in events:
            self.times.hear(event, NOW)

    def due(self) -> CatchUpDue | None:
        facts = self.times.due()
        assert len(facts) < 2
        return facts[0] if facts else None

    def answer(self, *, left: int = 0, failed: int = 0, reason: str = "") -> CatchUpDue:
        due = self.due()
        assert due is not None
        self.hear(CaughtUp(at=due.at, number=due.number, left=left, failed=failed, reason=reason))
        return due

    def passes(self, seconds: float) -> None:
        self.clock.set_to(self.clock.now() + seconds)
        self.wall += seconds

    async def is_over(self) -> bool:
        ending = asyncio.create_task(self.times.over())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        over = ending.done()
        ending.cancel()
        return over


@pytest.fixture
async def night(monkeypatch: pytest.MonkeyPatch) -> Night:
    night = Night()

    class Loop:
        def time(self) -> float:
            return night.wall

    monkeypatch.setattr(asyncio, "get_running_loop", Loop)
    return night


async def test_a_night_on_which_nothing_is_missed_looks_at_its_begin_and_its_end(night: Night) -> None:
    assert night.due() is None
    night.hear(ANNOUNCED)
    first = night.answer()
    assert (first.occasion, first.begins, first.at) == ("the night begins", True, NOW - GRACE_S)
    night.hear(PULLED, READY, DONE, ANNOUNCED)
    night.passes(2 * GRACE_S)
    assert night.due() is None
    night.times.end()
    last = night.answer()
    assert (last.occasion, last.at) == ("the night ends", night.clock.now())
    assert await night.is_over()


async def test_what_lacks_is_asked_for_one_by_one(night: Night) -> None:
    night.hear(ANNOUNCED)
    first = night.due()
    assert first is not None
    assert night.due() is None  # until it is answered
    night.hear(CaughtUp(at=first.at, number=first.number + 5, left=0, failed=0))  # of a driver that died
    assert night.due() is None
    night.hear(CaughtUp(at=first.at, number=first.number, left=2, failed=0))
    second, third = night.answer(left=1), night.answer()
    assert [due.begins for due in (first, second, third)] == [True, False, False]
    assert first.at == second.at == third.at
    assert len({due.event_id for due in (first, second, third)}) == 3
    assert night.due() is None


async def test_nothing_is_fetched_while_a_visit_s_pixels_are_pulled(night: Night) -> None:
    night.hear(ANNOUNCED)
    night.answer(left=3)
    night.hear(PULLED)
    assert night.due() is None
    night.hear(READY)
    assert night.due() is not None


@pytest.mark.parametrize("end", [DONE, VisitRefused(group="g1", reason="no such filter")])
async def test_a_visit_that_ended_without_some_of_its_raws_is_caught_up_a_little_later(
    night: Night, end: Event
) -> None:
    night.hear(PULLED, LOST)
    assert night.due() is None
    night.hear(end)
    assert night.due() is None
    night.passes(GRACE_S)
    due = night.answer()
    assert (due.at, due.begins) == (NOW, True)
    night.passes(GRACE_S)
    assert night.due() is None


async def test_what_could_not_be_had_is_tried_again_after_the_next_visit(night: Night) -> None:
    night.hear(ANNOUNCED)
    night.answer(failed=1)
    assert night.due() is None
    night.hear(DONE)
    night.passes(GRACE_S)
    assert night.due() is not None


async def test_a_camera_that_does_not_answer_is_asked_again_later(night: Night) -> None:
    night.hear(ANNOUNCED)
    with capture_logs() as logs:
        first = night.answer(reason="the DAQ does not answer")
    assert [line["reason"] for line in logs] == ["the DAQ does not answer"]
    night.passes(RETRY_S / 2)
    assert night.due() is None
    night.passes(RETRY_S / 2)
    again = night.answer()
    assert again.begins
    assert again.number == first.number + 1
    assert await night.is_over()


async def test_at_the_end_of_a_night_a_silent_camera_is_asked_for_a_minute_and_given_up(night: Night) -> None:
    night.times.end()
    asked = 0
    while not await night.is_over():
        night.answer(reason="the DAQ does not answer")
        night.passes(RETRY_S)
        asked += 1
    assert asked == SILENT_S / RETRY_S + 1


async def test_the_end_does_not_wait_for_pixels_that_never_came(night: Night) -> None:
    night.hear(PULLED)
    night.times.end()
    night.answer()
    assert await night.is_over()


async def test_two_drivers_ask_with_other_ids(night: Night) -> None:
    night.hear(ANNOUNCED)
    first = night.answer()
    night.clock.set_to(NOW + 0.1)
    other = CatchUpTimes(night.clock)
    other.hear(ANNOUNCED, NOW)
    (due,) = other.due()
    assert due.event_id != first.event_id

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from backbone.journal import Delivery, MemoryJournal
from cluster.bus import MAX_ATTEMPTS, Bus, Route
from cluster.host import Outcome
from schemas.clock import ManualClock
from schemas.errors import Broken
from schemas.events import (
    AlertsSent,
    DetectorFailed,
    DiaSourcesReady,
    Event,
    InputRefused,
    LiteAlertsSent,
    NextVisit,
    NoticeFailed,
    OfflineFailed,
    RawReady,
    ReadoutEnded,
    VisitAssigned,
    VisitRefused,
)
from schemas.identity import DatasetId
from schemas.image import Observation

PLAN = NextVisit(
    group="g1", instrument="LSSTCam", ra=1.0, dec=2.0, rotation=0.0, filters="r_57", start_time=10.0, duration=30.0,
    n_images=2,
)  # fmt: skip


def assigned(detector: int, group: str = "g1") -> VisitAssigned:
    return VisitAssigned(group=group, detector=detector, visit_plan=PLAN, band="r")


def outcome(*events: Event, verdict: str = "done", error: str = "") -> Outcome:
    return Outcome(verdict, events, error, 0.0, 0.0, 1, 1)  # type: ignore[arg-type] - a test may pass any verdict


class ScriptedHosts:
    """Answers as told; keeps who was called with what, in order."""

    def __init__(self, answer: Callable[[str, int, Event, int], Outcome]) -> None:
        self.answer = answer
        self.calls: list[tuple[str, int, Event]] = []
        self.replaced: list[tuple[str, int]] = []
        self.count: dict[str, int] = defaultdict(int)

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:
        self.calls.append((pool, lane, event))
        self.count[event.event_id] += 1
        await asyncio.sleep(0)
        return self.answer(pool, lane, event, self.count[event.event_id])

    async def back(self, pool: str, lane: int) -> None:
        """It is."""

    async def replace(self, pool: str, lane: int) -> None:
        self.replaced.append((pool, lane))


class HungHosts(ScriptedHosts):
    """Of which those of one pool, or all, do not answer."""

    def __init__(self, answer: Callable[[str, int, Event, int], Outcome], only: str = "") -> None:
        super().__init__(answer)
        self.only = only

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:
        if pool == (self.only or pool):
            await asyncio.Event().wait()
        return await super().call(pool, lane, event)


ROUTES = (
    Route("fan_out", 1, frozenset({"NextVisit"}), 1.0),
    Route("ccd_worker", 2, frozenset({"VisitAssigned"}), 1.0),
)


@asynccontextmanager
async def running(bus: Bus) -> AsyncIterator[None]:
    job = asyncio.create_task(bus.run())
    yield
    job.cancel()
    await asyncio.wait([job])


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.bus.BACKOFF_S", 0.0)


def fan_out(pool: str, _lane: int, _event: Event, _attempt: int) -> Outcome:
    return outcome(*(assigned(d) for d in range(4))) if pool == "fan_out" else outcome()


async def test_what_follows_from_a_fact_reaches_the_pools_that_understand_it() -> None:
    hosts, journal = ScriptedHosts(fan_out), MemoryJournal()
    bus = Bus(ROUTES, hosts, journal, ManualClock(5.0))
    async with running(bus):
        await bus.publish([PLAN])
        await asyncio.wait_for(bus.drained(), 2)
    assert {(p, e.kind) for p, _, e in hosts.calls} == {
        ("fan_out", "NextVisit"),
        ("ccd_worker", "VisitAssigned"),
    }
    assert [e.kind for e in await journal.facts()] == ["NextVisit"] + 4 * ["VisitAssigned"]
    assert await journal.owed() == []


async def test_detectors_are_spread_evenly_and_keep_their_lane() -> None:
    hosts = ScriptedHosts(fan_out)
    bus = Bus(ROUTES, hosts, MemoryJournal(), ManualClock())
    async with running(bus):
        await bus.publish([assigned(d, group) for group in ("a", "b") for d in (90, 92, 94, 96)])
        await asyncio.wait_for(bus.drained(), 2)
    lanes = defaultdict(set)
    for _, lane, event in hosts.calls:
        assert isinstance(event, VisitAssigned)
        lanes[event.detector].add(lane)
    assert all(len(used) == 1 for used in lanes.values())
    assert sorted(lane for used in lanes.values() for lane in used) == [0, 0, 1, 1]
    pool = hosts.calls[0][0]
    assert {detector: {bus.lane_of(pool, detector)} for detector in lanes} == dict(lanes)
    assert bus.lane_of(pool, 5) == bus.lane_of(pool, None) == 0


async def test_the_same_fact_told_twice_is_handled_once() -> None:
    hosts = ScriptedHosts(fan_out)
    bus = Bus(ROUTES, hosts, MemoryJournal(), ManualClock())
    async with running(bus):
        await bus.publish([PLAN])
        await bus.publish([PLAN])
        await asyncio.wait_for(bus.drained(), 2)
    assert hosts.count[PLAN.event_id] == 1


async def test_a_dead_host_and_a_transient_error_are_tried_again() -> None:
    def answer(_pool: str, _lane: int, _event: Event, attempt: int) -> Outcome:
        if attempt == 1:
            raise ConnectionError("the process is gone")
        return outcome(verdict="transient", error="busy") if attempt == 2 else outcome()

    hosts, journal = ScriptedHosts(answer), MemoryJournal()
    bus = Bus(ROUTES, hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([assigned(3)])
        await asyncio.wait_for(bus.drained(), 2)
    assert hosts.count[assigned(3).event_id] == 3
    assert await journal.facts("DetectorFailed") == []


async def test_after_the_last_attempt_the_detector_fails_and_the_night_goes_on() -> None:
    hosts = ScriptedHosts(lambda *_: outcome(verdict="transient", error="no answer from the moon"))
    journal = MemoryJournal()
    bus = Bus(ROUTES, hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([assigned(3)])
        await asyncio.wait_for(bus.drained(), 2)
    assert hosts.count[assigned(3).event_id] == MAX_ATTEMPTS
    (failed,) = await journal.facts("DetectorFailed")
    assert isinstance(failed, DetectorFailed)
    assert (failed.detector, failed.stage) == (3, "ccd_worker")
    assert "moon" in failed.reason


@pytest.mark.parametrize("verdict", ["bad data", "bug"])
async def test_bad_data_and_bugs_are_not_tried_again(verdict: str) -> None:
    hosts = ScriptedHosts(lambda *_: outcome(verdict=verdict, error="all NaN"))
    journal = MemoryJournal()
    bus = Bus(ROUTES, hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([assigned(3), PLAN])
        await asyncio.wait_for(bus.drained(), 2)
    assert set(hosts.count.values()) == {1}
    assert {type(f) for f in await journal.facts("DetectorFailed", "VisitRefused")} == {
        DetectorFailed,
        VisitRefused,
    }


async def test_a_patient_pool_tries_on_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def pass_over(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr("cluster.bus.asyncio.sleep", pass_over)
    monkeypatch.setattr("cluster.bus.BACKOFF_S", 0.5)
    tries = 3 * MAX_ATTEMPTS
    hosts = ScriptedHosts(lambda _p, _l, _e, n: outcome() if n > tries else outcome(verdict="transient", error="busy"))
    journal = MemoryJournal()
    routes = [Route("herald", 1, frozenset({"VisitAssigned"}), 1.0, patient=True)]
    bus = Bus(routes, hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([assigned(3)])
        await asyncio.wait_for(bus.idle(), 2)
    assert hosts.count[assigned(3).event_id] == tries + 1
    assert [fact.kind for fact in await journal.facts()] == ["VisitAssigned"]
    assert max(slept) == 8.0


async def test_a_notice_that_cannot_be_made_fails_no_detector_and_no_visit() -> None:
    hosts = ScriptedHosts(lambda *_: outcome(verdict="bug", error="KeyError: 94"))
    journal = MemoryJournal()
    routes = [Route("herald", 1, frozenset({"VisitAssigned"}), 1.0, patient=True)]
    bus = Bus(routes, hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([assigned(3)])
        await asyncio.wait_for(bus.idle(), 2)
    (failed,) = await journal.facts("NoticeFailed", "DetectorFailed", "VisitRefused")
    assert isinstance(failed, NoticeFailed)
    assert (failed.about, failed.reason) == ("VisitAssigned", "KeyError: 94")


@pytest.mark.parametrize("died", [MAX_ATTEMPTS - 1, MAX_ATTEMPTS])
async def test_a_patient_pool_whose_host_dies_again_and_again_gives_up_like_any_other(died: int) -> None:
    def answer(_pool: str, _lane: int, _event: Event, attempt: int) -> Outcome:
        if attempt % 2 and attempt < 2 * died:
            raise ConnectionError("the process is gone")
        return outcome() if attempt > 2 * died else outcome(verdict="transient", error="busy")

    hosts, journal = ScriptedHosts(answer), MemoryJournal()
    routes = [Route("herald", 1, frozenset({"VisitAssigned"}), 1.0, patient=True)]
    bus = Bus(routes, hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([assigned(3)])
        await asyncio.wait_for(bus.idle(), 2)
    failed = await journal.facts("NoticeFailed")
    assert len(failed) == (died == MAX_ATTEMPTS)
    assert hosts.count[assigned(3).event_id] == (2 * died + 1 if not failed else 2 * died - 1)


async def test_a_patient_pool_whose_host_hangs_gives_up_like_any_other() -> None:
    hosts, journal = HungHosts(fan_out), MemoryJournal()
    routes = [Route("herald", 1, frozenset({"VisitAssigned"}), 0.01, patient=True)]
    bus = Bus(routes, hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([assigned(3)])
        await asyncio.wait_for(bus.idle(), 2)
    assert hosts.replaced == [("herald", 0)] * MAX_ATTEMPTS
    assert [fact.kind for fact in await journal.facts()] == ["VisitAssigned", "NoticeFailed"]


async def test_what_a_pool_aside_owes_is_not_waited_for_and_is_counted() -> None:
    routes = [*ROUTES, Route("herald", 1, frozenset({"VisitAssigned"}), 5.0, aside=True)]
    hosts, journal = HungHosts(fan_out, only="herald"), MemoryJournal()
    bus = Bus(routes, hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([PLAN])
        await asyncio.wait_for(bus.drained(), 2)
        assert bus.owed() == {"herald": 4}  # one is in its hands
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bus.idle(), 0.05)
    assert {delivery.pool for delivery in await journal.owed()} == {"herald"}


async def test_lite_alerts_that_are_given_up_fail_no_detector() -> None:
    sent = AlertsSent(
        group="g1", visit=1, detector=3, made=7, sent=7, acknowledged=7, failed={}, readout_ended=1.0,
        last_acknowledged=2.0,
    )  # fmt: skip
    hosts, journal = ScriptedHosts(lambda *_: outcome(verdict="bad data", error="no such file")), MemoryJournal()
    routes = [Route("lite_emitter", 1, frozenset({"AlertsSent"}), 1.0, patient=True)]
    bus = Bus(routes, hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([sent])
        await asyncio.wait_for(bus.idle(), 2)
    lost = LiteAlertsSent(group="g1", visit=1, detector=3, sent=0, failed={"no such file": 7})
    assert await journal.facts() == [sent, lost]


@pytest.mark.parametrize(("verdict", "calls"), [("bad data", 1), ("bug", 2)])
async def test_what_was_refused_is_not_tried_again_at_the_next_start(verdict: str, calls: int) -> None:
    hosts, journal = ScriptedHosts(lambda *_: outcome(verdict=verdict, error="too large")), MemoryJournal()
    routes = [Route("ccd_worker", 1, frozenset({"VisitAssigned"}), 1.0, resumes=True)]
    for _ in range(2):
        bus = Bus(routes, hosts, journal, ManualClock())
        async with running(bus):
            await bus.publish([assigned(3)])
            await asyncio.sleep(0)
            await asyncio.wait_for(bus.idle(), 2)
    assert len(hosts.calls) == calls


async def test_a_host_that_hangs_is_replaced_within_its_deadline() -> None:
    async def hang(_pool: str, _lane: int, event: Event) -> Outcome:
        hosts.count[event.event_id] += 1
        if hosts.count[event.event_id] == 1:
            await asyncio.Event().wait()
        return outcome()

    hosts = ScriptedHosts(fan_out)
    hosts.call = hang  # type: ignore[method-assign] - the script of this test
    bus = Bus([Route("ccd_worker", 1, frozenset({"VisitAssigned"}), 0.05)], hosts, MemoryJournal(), ManualClock())
    async with running(bus):
        await bus.publish([assigned(3)])
        await asyncio.wait_for(bus.drained(), 2)
    assert hosts.replaced == [("ccd_worker", 0)]


async def test_a_broken_invariant_stops_the_bus() -> None:
    hosts = ScriptedHosts(lambda *_: outcome(verdict="broken", error="two truths"))
    bus = Bus(ROUTES, hosts, MemoryJournal(), ManualClock())
    await bus.publish([PLAN])
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(bus.run(), 2)
    assert caught.group_contains(Broken, match="two truths")


async def test_a_new_bus_goes_on_with_what_the_journal_owes() -> None:
    journal = MemoryJournal()
    await journal.append([assigned(7)], {assigned(7).event_id: ["ccd_worker"]}, 1.0)
    hosts = ScriptedHosts(fan_out)
    bus = Bus(ROUTES, hosts, journal, ManualClock())
    async with running(bus):
        await asyncio.sleep(0.01)
        await asyncio.wait_for(bus.drained(), 2)
    assert [e for _, _, e in hosts.calls] == [assigned(7)]


async def test_an_archiver_that_gives_up_names_the_raw_and_fails_no_detector() -> None:
    seen = Observation("LSSTCam", "g1", 1, 1, 0, 2, "MC_O_20260705_000001", "r_57", "r", 1.0, 2.0, 3.0, 15.0, 0.0, 17.0)
    raw = DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=1, detector=3)
    ready = RawReady(group="g1", detector=3, observation=seen, raw=raw, sha256="0")
    hosts = ScriptedHosts(lambda *_: outcome(verdict="bad data", error="disk full"))
    journal = MemoryJournal()
    bus = Bus([Route("archiver", 1, frozenset({"RawReady"}), 1.0)], hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([ready])
        await asyncio.wait_for(bus.drained(), 2)
    assert [f.kind for f in await journal.facts()] == ["RawReady", "RawNotArchived"]


async def test_what_failed_is_logged_once_an_attempt_with_what_it_is_about_and_what_becomes_of_it() -> None:
    def answer(_pool: str, _lane: int, _event: Event, attempt: int) -> Outcome:
        return outcome(verdict="transient" if attempt == 1 else "bad data", error=f"attempt {attempt}")

    bus = Bus(ROUTES, ScriptedHosts(answer), MemoryJournal(), ManualClock())
    with capture_logs() as logs:
        async with running(bus):
            await bus.publish([assigned(7)])
            await asyncio.wait_for(bus.drained(), 2)
    about = {"part": "bus", "pool": "ccd_worker", "event_kind": "VisitAssigned", "group": "g1", "detector": 7}
    assert logs == [
        {"event": "tried again", "log_level": "warning", "error": "attempt 1", "attempts": 1, **about},
        {"event": "given up", "log_level": "error", "error": "attempt 2", "attempts": 2, **about},
    ]


async def test_a_dead_letter_that_is_given_up_is_named_and_refuses_no_visit() -> None:
    refused = InputRefused(topic="t", partition=0, offset=7, reason="no Avro", payload="")
    hosts, journal = ScriptedHosts(lambda *_: outcome(verdict="bad data", error="too large")), MemoryJournal()
    bus = Bus([Route("dead_letter_office", 1, frozenset({"InputRefused"}), 1.0)], hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([refused])
        await asyncio.wait_for(bus.drained(), 2)
    assert await journal.facts() == [refused, NoticeFailed(about="t 0:7", reason="too large")]


async def test_owed_deliveries_survive_as_they_were() -> None:
    journal = MemoryJournal()
    await journal.append([PLAN], {PLAN.event_id: ["fan_out"]}, 1.0)
    (delivery,) = await journal.owed()
    again = await journal.retry(delivery, "busy", 2.0)
    assert await journal.owed() == [Delivery(PLAN, "fan_out", 1)] == [again]


def test_events_of_one_identity_are_one_fact() -> None:
    ended = ReadoutEnded(
        group="g", instrument="LSSTCam", exposure=5, image_name="MC_O_20260705_000005", snap=0, n_snaps=1,
        exposure_time=15.0, started=1.0, readout_ended=18.0,
    )  # fmt: skip
    assert ended.event_id == ended.model_copy(update={"readout_ended": 19.0}).event_id
    assert ended.event_id != ended.model_copy(update={"exposure": 6}).event_id


class SlowHosts(ScriptedHosts):
    """Of which those of one pool answer when they are let go."""

    def __init__(self, slow: str) -> None:
        super().__init__(lambda *_: outcome())
        self.slow, self.let_go = slow, asyncio.Event()

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:
        answer = await super().call(pool, lane, event)
        if pool == self.slow:
            await self.let_go.wait()
        return answer


async def test_a_pool_that_yields_begins_nothing_while_the_other_has_work() -> None:
    routes = [
        Route("offline", 1, frozenset({"VisitAssigned"}), 5.0, yields_to="ccd_worker"),
        Route("ccd_worker", 1, frozenset({"VisitAssigned"}), 5.0),
    ]
    hosts = SlowHosts("ccd_worker")
    bus = Bus(routes, hosts, MemoryJournal(), ManualClock())
    async with running(bus):
        await bus.publish([assigned(3)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bus.drained(), 0.05)
        assert [pool for pool, *_ in hosts.calls] == ["ccd_worker"]
        hosts.let_go.set()
        await asyncio.wait_for(bus.drained(), 2)
    assert [pool for pool, *_ in hosts.calls] == ["ccd_worker", "offline"]


def redone() -> DiaSourcesReady:
    seen = Observation("LSSTCam", "g1", 1, 2, 1, 2, "MC_O_20260705_000002", "r_57", "r", 1.0, 2.0, 0.0, 15.0, 0.0, 17.0)
    products = DatasetId(dataset_type="dia_products", instrument="LSSTCam", visit=1, detector=3)
    return DiaSourcesReady(
        group="g1", instrument="LSSTCam", visit=1, detector=3, observation=seen, count=1, products=products,
        stages={}, summary={}, redone=1,
    )  # fmt: skip


async def test_what_is_redone_in_vain_has_failed_offline() -> None:
    hosts, journal = ScriptedHosts(lambda *_: outcome(verdict="bad data", error="NaN")), MemoryJournal()
    bus = Bus([Route("sequencer", 1, frozenset({"DiaSourcesReady"}), 1.0)], hosts, journal, ManualClock())
    async with running(bus):
        await bus.publish([redone()])
        await asyncio.wait_for(bus.idle(), 2)
    (failed,) = await journal.facts("OfflineFailed", "DetectorFailed")
    assert failed == OfflineFailed(group="g1", visit=1, detector=3, stage="sequencer", reason="NaN", redone=1)


async def test_a_host_that_has_grown_too_large_is_replaced_once_it_has_answered() -> None:
    large = Outcome("done", (), "", 0.0, 0.0, 1, 2_000)
    hosts = ScriptedHosts(lambda _p, _l, event, _n: large if event == assigned(3) else outcome())
    route = Route("ccd_worker", 2, frozenset({"VisitAssigned"}), 1.0, max_bytes=1_000)
    bus = Bus([route], hosts, journal := MemoryJournal(), ManualClock())
    async with running(bus):
        await bus.publish([assigned(3), assigned(4)])
        await asyncio.wait_for(bus.drained(), 2)
    assert hosts.replaced == [("ccd_worker", 0)]
    assert await journal.owed() == []

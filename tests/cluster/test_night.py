"""How a night goes on and ends, with the real bus and keeper and hosts that answer as told."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from actors.base import Actor
from actors.visit_keeper import VisitKeeper
from backbone.journal import MemoryJournal
from cluster import night
from cluster.host import Host, Outcome
from cluster.inline import InlineHosts
from cluster.night import Progress, SplitHosts, Stage, end_night, staged, until_over, wind_down
from cluster.settings import Settings
from schemas.clock import ManualClock
from schemas.errors import Broken, Transient
from schemas.events import (
    AlertsSent,
    CatchUpDue,
    CaughtUp,
    Event,
    NextVisit,
    NextVisitCanceled,
    NightEnded,
    RawReady,
    VisitDone,
    VisitRefused,
)
from schemas.identity import DatasetId
from schemas.image import Observation

Answer = Callable[[str, Event], Outcome]
SOON_S = 5.0


def plan(group: str = "g1") -> NextVisit:
    return NextVisit(
        group=group, instrument="LSSTCam", ra=1.0, dec=2.0, rotation=0.0, filters="r_57", start_time=10.0,
        duration=30.0, n_images=2,
    )  # fmt: skip


def done(group: str = "g1") -> VisitDone:
    return VisitDone(group=group, visit=None, detectors=())


def outcome(*events: Event, verdict: str = "done", error: str = "") -> Outcome:
    return Outcome(verdict, events, error, 0.0, 0.0, 1, 1)  # type: ignore[arg-type] - a test may pass any verdict


def well(_pool: str, event: Event) -> Outcome:
    """Nothing follows, and nothing lacks."""
    if isinstance(event, CatchUpDue):
        return outcome(CaughtUp(at=event.at, number=event.number, left=0, failed=0))
    return outcome()


class ToldHosts:
    """Answers as told; keeps who was called with what."""

    def __init__(self, answer: Answer = well) -> None:
        self.answer = answer
        self.calls: list[tuple[str, int, Event]] = []
        self.replaced: list[tuple[str, int]] = []

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:
        self.calls.append((pool, lane, event))
        await asyncio.sleep(0)
        return self.answer(pool, event)

    async def back(self, pool: str, lane: int) -> None:
        """It is."""

    async def replace(self, pool: str, lane: int) -> None:
        self.replaced.append((pool, lane))


class HungHosts(ToldHosts):
    """Answers nothing, or nothing from some pools."""

    def __init__(self, *pools: str) -> None:
        super().__init__()
        self.hung = pools

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:
        if self.hung and pool not in self.hung:
            return await super().call(pool, lane, event)
        self.calls.append((pool, lane, event))
        return await asyncio.Future()


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night, "TICK_S", 0.01)
    monkeypatch.setattr(night, "QUIET_S", 0.05)
    monkeypatch.setattr(night, "DRAIN_DEADLINE_S", 0.1)
    monkeypatch.setattr(night, "PATIENT_S", 0.1)


@asynccontextmanager
async def played(
    folder: Path, hosts: ToldHosts, planned: Sequence[str] = ("g1",), journal: MemoryJournal | None = None
) -> AsyncIterator[Stage]:
    journal, clock = journal or MemoryJournal(), ManualClock(5.0)
    keeper = VisitKeeper(chronicle=journal, clock=clock)
    screen = Console(file=io.StringIO())
    async with staged(Settings(output=folder), hosts, keeper, journal, clock, planned, screen) as stage:
        yield stage


async def forever() -> None:
    await asyncio.Future()


async def yes() -> bool:
    return True


async def over(
    stage: Stage, *, runs: bool = True, stop: asyncio.Event | None = None, all_read: Callable[[], Awaitable[bool]] = yes
) -> None:
    """`until_over` beside a feed that goes on."""
    feeding = asyncio.create_task(forever())
    try:
        await asyncio.wait_for(until_over(stage, lambda: runs, all_read, stop or asyncio.Event(), feeding), SOON_S)
    finally:
        feeding.cancel()
        await asyncio.wait([feeding])


async def test_a_night_is_complete_when_every_planned_visit_is_done_or_refused() -> None:
    progress = Progress(["g1", "g2"])
    for event in (plan("g1"), plan("g2"), done("g1")):
        progress.hear(event, 0.0)
    assert (progress.complete, progress.open_visits) == (False, ["g2"])
    progress.hear(VisitRefused(group="g2", reason="no such filter"), 0.0)
    assert (progress.complete, progress.open_visits) == (True, [])


async def test_a_visit_that_nobody_planned_is_open_but_does_not_keep_the_night_incomplete() -> None:
    progress = Progress(["g1"])
    for event in (plan("g1"), plan("stranger"), done("g1")):
        progress.hear(event, 0.0)
    assert (progress.complete, progress.open_visits) == (True, ["stranger"])


async def test_a_canceled_visit_stays_open_until_it_is_done() -> None:
    progress = Progress(["g1"])
    for event in (plan(), NextVisitCanceled(group="g1")):
        progress.hear(event, 0.0)
    assert progress.open_visits == ["g1"]


async def test_any_fact_ends_the_quiet() -> None:
    progress = Progress(["g1"])
    progress.last_heard -= 100.0
    assert progress.quiet_for() >= 100.0
    progress.hear(NextVisitCanceled(group="g1"), 0.0)
    assert progress.quiet_for() < 50.0


async def test_progress_is_taken_up_from_the_journal(tmp_path: Path) -> None:
    journal = MemoryJournal()
    await journal.append([plan("g1"), plan("g2"), done("g1")], {}, 1.0)
    async with played(tmp_path, ToldHosts(), ["g1", "g2"], journal) as stage:
        assert stage.progress.open_visits == ["g2"]


async def test_the_night_is_over_when_its_visits_have_ended(tmp_path: Path) -> None:
    async with played(tmp_path, ToldHosts()) as stage:
        await stage.bus.publish([plan(), done()])
        await over(stage, runs=False)


async def test_a_night_whose_visits_were_all_given_up_goes_on_while_the_observatory_has_more_to_say(
    tmp_path: Path,
) -> None:
    async with played(tmp_path, ToldHosts()) as stage:
        await stage.bus.publish([plan(), done()])
        waiting = asyncio.create_task(over(stage, runs=True))
        await asyncio.wait([waiting], timeout=5 * night.QUIET_S)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_the_night_is_over_when_it_is_stopped(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    async with played(tmp_path, ToldHosts()) as stage:
        await over(stage, stop=stop)
        assert not stage.progress.complete


async def test_the_night_is_over_when_the_observatory_has_ended_and_nothing_more_comes(tmp_path: Path) -> None:
    async with played(tmp_path, ToldHosts()) as stage:
        await over(stage, runs=False)
        assert stage.progress.quiet_for() > night.QUIET_S


async def test_what_the_observatory_said_to_a_broker_that_is_away_is_heard_before_the_night_ends(
    tmp_path: Path,
) -> None:
    heard: list[str] = []

    async with played(tmp_path, ToldHosts(), ["g1", "g2"]) as stage:

        async def all_read() -> bool:
            """The broker is back at the third question, with a visit of which nothing was known."""
            heard.append("asked")
            if len(heard) == 3:
                await stage.bus.publish([plan("g2"), done("g2")])
            return len(heard) >= 3

        await over(stage, runs=False, all_read=all_read)
        assert "g2" in stage.progress.ended


async def test_a_visit_that_is_open_keeps_the_night_going(tmp_path: Path) -> None:
    async with played(tmp_path, ToldHosts()) as stage:
        await stage.bus.publish([plan()])
        waiting = asyncio.create_task(over(stage, runs=False))
        await asyncio.wait([waiting], timeout=5 * night.QUIET_S)
        assert not waiting.done()
        await stage.bus.publish([done()])
        await waiting


async def test_what_ends_the_feed_ends_the_night(tmp_path: Path) -> None:
    async def broken_off() -> None:
        raise Transient("the broker at localhost:1 does not answer")

    async with played(tmp_path, ToldHosts()) as stage:
        feeding = asyncio.create_task(broken_off())
        with pytest.raises(Transient, match="localhost:1"):
            await asyncio.wait_for(until_over(stage, lambda: True, yes, asyncio.Event(), feeding), SOON_S)


async def test_winding_down_cancels_what_is_open_and_leaves_what_has_ended(tmp_path: Path) -> None:
    hosts = ToldHosts()
    async with played(tmp_path, hosts, ["g1", "g2"]) as stage:
        await stage.bus.publish([plan("g1"), plan("g2"), done("g1")])
        await asyncio.wait_for(wind_down(stage), SOON_S)
    canceled = {e.group: e.reason for _, _, e in hosts.calls if isinstance(e, NextVisitCanceled)}
    assert canceled == {"g2": "the night was stopped"}


async def test_winding_down_waits_for_what_is_under_way(tmp_path: Path) -> None:
    journal, hosts = MemoryJournal(), ToldHosts()
    async with played(tmp_path, hosts, journal=journal) as stage:
        await stage.bus.publish([plan(), done(), ready()])
        await asyncio.wait_for(wind_down(stage), SOON_S)
        assert await journal.owed() == []
    assert {pool for pool, _, e in hosts.calls if e.kind == "RawReady"} == {"ccd_worker", "archiver", "visit_keeper"}


async def test_winding_down_gives_up_what_stays_silent_and_says_what_is_owed(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with played(tmp_path, HungHosts(), journal=journal) as stage:
        await stage.bus.publish([plan(), done(), ready(93), ready(94)])
        with capture_logs() as logs:
            await asyncio.wait_for(wind_down(stage), SOON_S)
        assert {d.pool for d in await journal.owed()} >= {"ccd_worker", "archiver"}
    (line,) = [line for line in logs if line["event"] == "not finished"]
    assert line["owed"]["archiver"] == 2  # one of them is in its hands


async def test_a_night_ends_when_nothing_is_owed_any_more_and_that_is_told(tmp_path: Path) -> None:
    journal, hosts = MemoryJournal(), ToldHosts()
    async with played(tmp_path, hosts, ["g1", "g2"], journal) as stage:
        await stage.bus.publish([plan("g1"), plan("g2"), done("g1"), ready()])
        await asyncio.wait_for(end_night(stage, 20260705, ManualClock(7.0)), SOON_S)
        assert await journal.owed() == []
    assert [entry.event.kind for entry in await journal.entries()][-1] == "NightEnded"
    assert await journal.facts("NightEnded") == [NightEnded(day_obs=20260705, visits=1, at=7.0)]
    assert ("herald", "NightEnded") in {(pool, e.kind) for pool, _, e in hosts.calls}


async def test_a_broker_that_is_not_told_holds_up_no_end_of_a_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(night, "DRAIN_DEADLINE_S", 100.0)
    journal = MemoryJournal()
    async with played(tmp_path, HungHosts("herald", "lite_emitter"), journal=journal) as stage:
        await stage.bus.publish([plan(), done(), sent(93), sent(94)])
        with capture_logs() as logs:
            await asyncio.wait_for(end_night(stage, 20260705, ManualClock(7.0)), SOON_S)
        assert {d.pool for d in await journal.owed()} == {"herald", "lite_emitter"}
    assert len(await journal.facts("NightEnded")) == 1
    (line,) = [line for line in logs if line["event"] == "not finished"]
    assert line["owed"] == {"herald": 2, "lite_emitter": 2}


async def test_a_night_that_leaves_something_undone_has_not_ended(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with played(tmp_path, HungHosts(), journal=journal) as stage:
        await stage.bus.publish([plan(), done(), ready()])
        await asyncio.wait_for(end_night(stage, 20260705, ManualClock(7.0)), SOON_S)
    assert await journal.facts("NightEnded") == []


async def test_a_host_that_says_broken_ends_the_night_loudly(tmp_path: Path) -> None:
    hosts = ToldHosts(lambda _pool, _event: outcome(verdict="broken", error="two truths"))

    async def play() -> None:
        async with played(tmp_path, hosts) as stage:
            await stage.bus.publish([plan()])
            await over(stage)

    with pytest.raises(ExceptionGroup) as caught:
        await play()
    assert caught.group_contains(Broken, match="two truths")


class Canceler(Actor):
    """Refuses what is canceled."""

    async def on_next_visit_canceled(self, event: NextVisitCanceled) -> Sequence[Event]:
        return [VisitRefused(group=event.group, reason="here")]


async def test_a_pool_that_is_hosted_here_is_called_here_and_the_others_there() -> None:
    there = ToldHosts(lambda _pool, event: outcome(VisitRefused(group=event.group, reason="there")))
    hosts = SplitHosts(InlineHosts({"visit_keeper": Host(Canceler(), "visit_keeper")}), there)
    event = NextVisitCanceled(group="g1")
    reasons = [(await hosts.call(pool, 1, event)).events[0] for pool in ("visit_keeper", "ccd_worker")]
    assert reasons == [VisitRefused(group="g1", reason="here"), VisitRefused(group="g1", reason="there")]
    assert there.calls == [("ccd_worker", 1, event)]


async def test_only_a_host_elsewhere_is_replaced() -> None:
    there = ToldHosts()
    hosts = SplitHosts(InlineHosts({"visit_keeper": Host(Canceler(), "visit_keeper")}), there)
    await hosts.replace("visit_keeper", 0)
    await hosts.replace("ccd_worker", 1)
    assert there.replaced == [("ccd_worker", 1)]


def ready(detector: int = 94) -> RawReady:
    seen = Observation("LSSTCam", "g1", 1, 1, 0, 2, "MC_O_20260705_000001", "r_57", "r", 1.0, 2.0, 3.0, 15.0, 0.0, 17.0)
    raw = DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=1, detector=detector)
    return RawReady(group="g1", detector=detector, observation=seen, raw=raw, sha256="0")


def sent(detector: int) -> AlertsSent:
    return AlertsSent(
        group="g1", visit=1, detector=detector, made=3, sent=3, acknowledged=3, failed={}, readout_ended=1.0,
        last_acknowledged=2.0,
    )  # fmt: skip

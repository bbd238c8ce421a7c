"""A night on which much is missed: every raw that the camera took is in the archive when it has ended.

The bus, the journal, the camera's server, and the pools that read, archive and catch up are real; a stand-in fails
each visit-detector where its science would be.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from access.report.collect import NightFacts, collect
from access.report.model import Report
from actors.camera_reader import raw_id
from actors.fan_out import Chronicle
from actors.visit_keeper import VisitKeeper
from backbone.butler import ButlerArchive
from backbone.daq_client import FlightDaq
from backbone.journal import MemoryJournal
from backbone.l1 import L1Database
from backbone.l1_memory import L1Memory
from cluster import bus, catch_up, night
from cluster.host import Host, Outcome
from cluster.night import Stage, end_night, settled, staged
from cluster.pixels import MemoryPixels
from cluster.settings import Settings
from cluster.site import FolderSite
from cluster.topology import POOLS
from schemas.clock import ManualClock
from schemas.errors import Transient
from schemas.events import DetectorFailed, Event, NextVisit, RawArchived, RawReady, ReadoutEnded
from schemas.image import Observation, Raw
from tests.simulators.camera.quick_daq import QuickDaq, pixels

DETECTOR, NOW = 94, 1_783_300_000.0
BUILT = ("fan_out", "visit_keeper", "camera_reader", "archiver", "catch_up")


def exposed(number: int, started: float) -> Observation:
    exposure = 2026070500000 + number
    return Observation(
        instrument="LSSTCam", group=f"g{number}", visit=exposure, exposure=exposure, snap=0, n_snaps=1,
        image_name=f"MC_O_20260705_{number:06d}", physical_filter="r_57", band="r", ra=150.0, dec=2.0, rotation=30.0,
        exposure_time=30.0, started=started, readout_ended=started + 32.0,
    )  # fmt: skip


def announced(seen: Observation, **changes: object) -> NextVisit:
    fields = {"filters": seen.physical_filter} | changes
    return NextVisit(
        group=seen.group, instrument="LSSTCam", ra=seen.ra, dec=seen.dec, rotation=seen.rotation,
        start_time=seen.started, duration=32.0, n_images=1, **fields,
    )  # fmt: skip


def read_out(seen: Observation) -> ReadoutEnded:
    return ReadoutEnded(
        group=seen.group, instrument="LSSTCam", exposure=seen.exposure, image_name=seen.image_name, snap=0, n_snaps=1,
        exposure_time=30.0, started=seen.started, readout_ended=seen.readout_ended,
    )  # fmt: skip


class FullArchive(ButlerArchive):
    """Its disk is full as long as `full` is set."""

    full = False

    def put_raw(self, raw: Raw) -> tuple[str, str]:
        if self.full:
            raise Transient("the archive's disk: no room")
        return super().put_raw(raw)


class SmallSite(FolderSite):
    """What those pools are given."""

    def __init__(self, settings: Settings, server: QuickDaq, clock: ManualClock, journal: MemoryJournal) -> None:
        super().__init__(settings)
        self.clock, self.journal = clock, journal
        self.pixels = MemoryPixels()
        self.daq = FlightDaq(server.address)
        self.store = FullArchive.create(settings.butler)
        self.store.register_camera(self.camera)

    @property
    def archive(self) -> FullArchive:
        return self.store

    async def chronicle(self) -> Chronicle:
        return self.journal

    async def l1(self) -> L1Database:
        return L1Memory()


@dataclass
class Hosts:
    """Real ones for some pools; a worker that fails what has its pixels; others that say nothing."""

    built: dict[str, Host] = field(default_factory=dict)

    async def call(self, pool: str, lane: int, event: Event) -> Outcome:  # noqa: ARG002 - the port's
        if pool in self.built:
            return await self.built[pool].handle(event)
        facts: tuple[Event, ...] = ()
        if pool == "ccd_worker" and isinstance(event, RawReady):
            facts = (DetectorFailed(group=event.group, visit=1, detector=event.detector, stage="science", reason="-"),)
        return Outcome("done", facts, "", 0.0, 0.0, 1, 1)

    async def back(self, pool: str, lane: int) -> None:
        """It is."""

    async def replace(self, pool: str, lane: int) -> None:
        """None of them dies."""


@dataclass
class Night:
    """A stage, the camera before it, and the clock of both."""

    stage: Stage
    server: QuickDaq
    clock: ManualClock
    site: SmallSite
    taken: list[Observation]

    def expose(self, *, ago: float = 0.0) -> Observation:
        """The next exposure, read out just now."""
        seen = exposed(len(self.taken) + 1, self.clock.now() - 32.0 - ago)
        self.server.expose(seen)
        self.taken.append(seen)
        return seen

    async def hears(self, *facts: Event) -> None:
        await self.stage.bus.publish(facts)
        assert await settled(self.stage)

    async def visit(self, **changes: object) -> Observation:
        """One that is announced, exposed and read out; then time passes."""
        self.clock.set_to(self.clock.now() + 40.0)
        seen = self.expose()
        await self.hears(announced(seen, **changes), read_out(seen))
        self.clock.set_to(self.clock.now() + 2.0 * catch_up.GRACE_S)
        return seen

    async def archived(self) -> dict[int | None, RawArchived]:
        facts = await self.site.journal.facts("RawArchived")
        return {fact.raw.exposure: fact for fact in facts if isinstance(fact, RawArchived)}

    async def report(self) -> Report:
        facts = NightFacts("20260705", 0.0, 1, 1.0, [], self.site.settings.truth, timed=False)
        return (await collect(facts, self.site.journal, L1Memory(), self.clock)).report


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night, "TICK_S", 0.02)
    monkeypatch.setattr(night, "PATIENT_S", 1.0)
    monkeypatch.setattr(bus, "BACKOFF_S", 0.01)
    monkeypatch.setattr(catch_up, "RETRY_S", 0.2)
    monkeypatch.setattr(catch_up, "SILENT_S", 1.0)


@contextmanager
def cut_off(server: QuickDaq) -> Iterator[None]:
    server.cut(NOW - 1e6, NOW + 1e6)
    yield
    server.play({})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QuickDaq]:
    server = QuickDaq(tmp_path, (DETECTOR,), ManualClock(NOW))
    yield server
    server.close()


@pytest.fixture
async def taken(tmp_path: Path, server: QuickDaq) -> Night:
    """All that can happen to a raw, and the end of the night."""
    clock, journal = ManualClock(NOW), MemoryJournal()
    site = SmallSite(Settings(output=tmp_path, detectors=(DETECTOR,), workers=1), server, clock, journal)
    hosts = Hosts({pool: Host(await POOLS[pool].make(site), pool) for pool in BUILT})  # type: ignore[arg-type]
    keeper = hosts.built["visit_keeper"].actor
    assert isinstance(keeper, VisitKeeper)
    screen = Console(file=io.StringIO())
    async with staged(site.settings, hosts, keeper, journal, clock, [], screen) as stage:
        played = Night(stage, server, clock, site, [])
        await _play(played)
    return played


async def _play(taken: Night) -> None:
    taken.expose(ago=3600.0)  # the system was down
    await taken.visit()
    with cut_off(taken.server):
        await taken.visit()
    taken.server.play({DETECTOR: "short"})
    await taken.visit()
    taken.server.play({})
    taken.site.store.full = True
    await taken.visit()
    taken.site.store.full = False
    await taken.visit(filters="H_alpha")  # refused
    await taken.hears(read_out(taken.expose()))  # no nextVisit came
    taken.expose()  # nothing was told of it at all
    await end_night(taken.stage, 20260705, taken.clock)


async def test_every_raw_that_the_camera_took_is_archived_bit_for_bit(taken: Night) -> None:
    archived = await taken.archived()
    assert sorted(e for e in archived if e) == [seen.exposure for seen in taken.taken]
    for seen in taken.taken:
        kept: Raw = taken.site.store.get(raw_id(seen, DETECTOR))
        np.testing.assert_array_equal(kept.segments, pixels(seen.exposure, DETECTOR))
        assert archived[seen.exposure].sha256 == kept.sha256
        assert replace(kept.observation, started=seen.started, readout_ended=seen.readout_ended) == seen
    late = [fact.raw.exposure for fact in archived.values() if fact.caught_up]
    assert sorted(e for e in late if e) == [seen.exposure for seen in taken.taken if seen != taken.taken[1]]
    told = [archived[seen.exposure].described_by for seen in taken.taken]
    assert told == ["camera"] + 4 * ["observatory"] + 3 * ["camera"]
    await _the_report_says_so(taken)


async def _the_report_says_so(taken: Night) -> None:
    report = await taken.report()
    balance = report.balance
    assert (balance.raws_taken, balance.raws_archived, balance.raws_caught_up, balance.raws_missing) == (8, 8, 7, 0)
    assert (report.raws_missing, report.catch_up_failed) == ({}, "")
    assert len(await taken.site.journal.facts("NightEnded")) == 1
    assert await taken.site.journal.owed() == []

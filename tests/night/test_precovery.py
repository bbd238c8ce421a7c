"""Precovery on pixels: a field seen three times, kept in a real Butler and a real database, and looked at again."""

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import fastavro
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from actors.associator import Associator
from actors.reduction import Reduction
from actors.stage_times import StageTimes
from backbone.alert_archive import AlertArchive
from backbone.archived_raws import ArchivedRaws
from backbone.butler import ButlerArchive
from backbone.journal import PostgresJournal
from backbone.l1_postgres import L1Postgres
from cluster import prepare
from cluster.cli import app
from cluster.pixels import MemoryPixels
from cluster.precover import Owed, Precovery
from cluster.products import ButlerProducts
from cluster.services import EmbeddedPostgres
from cluster.settings import Settings
from payloads.alert_production.alert_schema import alert_schema
from payloads.alert_production.forced import forced_photometry, forced_sources
from schemas.clock import ManualClock, NightClock
from schemas.errors import BadData, Transient
from schemas.events import AlertsReady, AssociationDue, DiaSourcesReady, NextVisit
from schemas.identity import DatasetId, dia_forced_source_id, dia_source_id, visit_detector_of
from schemas.image import DiaProducts, Observation, Raw
from schemas.tables import Table
from simulators.camera.exposure import FocalPlane
from simulators.ocs.schedule import PlannedVisit, load_schedule
from simulators.sky.sky import Sky

pytestmark = [pytest.mark.night, pytest.mark.timeout(600)]

DETECTOR, SEED = 94, 2
FLUXES, PLANES = ("psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr"), ("image", "mask", "variance")


@dataclass
class Camera:
    """The raws as they come from it."""

    raws: dict[int, Raw] = field(default_factory=dict)

    async def read(self, observation: Observation, detector: int) -> Raw:
        raw = self.raws[observation.exposure]
        assert raw.detector == detector
        return raw


@dataclass
class Night:
    """What was played: the folder and database that it left behind, and what nobody keeps, the pixels."""

    settings: Settings
    dsn: str
    plan: list[PlannedVisit]
    on_time: dict[int, DiaProducts] = field(default_factory=dict)

    @property
    def visits(self) -> list[int]:
        return [visit.observation(0).visit for visit in self.plan]

    @property
    def clock(self) -> ManualClock:
        return ManualClock(self.plan[-1].start_tai + 100.0)

    def last(self, visit: PlannedVisit) -> Observation:
        return visit.observation(visit.n_snaps - 1)

    async def play(self) -> None:
        """As the workers do it, one visit after the other."""
        lacking, _ = prepare.missing(self.settings, self.plan)
        prepare.make_and_put(lacking, SEED, self.settings)
        archive, plane = ButlerArchive.open(self.settings.butler), FocalPlane(SEED, "LSSTCam", Sky(SEED))
        camera = Camera()
        reduction = self.reduction(archive, camera)
        for visit in self.plan:
            for raw in prepare.raws_of(plane, visit, DETECTOR):
                camera.raws[raw.observation.exposure] = raw
                archive.put_raw(raw)
            made = await reduction.products_of(self.last(visit), DETECTOR, StageTimes())
            self.on_time[self.last(visit).visit] = made
            await self.associate(self.last(visit), made)

    def reduction(self, archive: ButlerArchive, raws: Any) -> Reduction:
        products = ButlerProducts(archive, "LSSTCam")
        return Reduction(camera=self.settings.camera, products=products, raws=raws, clock=self.clock)

    async def associate(self, last: Observation, products: DiaProducts) -> AlertsReady:
        l1, journal = await L1Postgres.open(self.dsn), await PostgresJournal.open(self.dsn)
        pixels = MemoryPixels()
        archive = AlertArchive(self.settings.alerts, alert_schema())
        associator = Associator(
            camera=self.settings.camera, l1=l1, archive=archive, pixels=pixels, chronicle=journal,
            clock=ManualClock(last.readout_ended + 10.0),
        )  # fmt: skip
        due = due_for(last, len(products.sources))
        await pixels.put(due.sources.products, products)
        (fact,) = await associator.react(due)
        await journal.append([announced(last)], {}, last.started - 22.0)
        await l1.close()
        await journal.close()
        assert isinstance(fact, AlertsReady)
        return fact


def announced(last: Observation) -> NextVisit:
    return NextVisit(
        group=last.group, instrument=last.instrument, ra=last.ra, dec=last.dec, rotation=last.rotation,
        filters=last.physical_filter, start_time=last.started, duration=36.0, n_images=last.n_snaps,
    )  # fmt: skip


def due_for(last: Observation, count: int) -> AssociationDue:
    name = DatasetId(dataset_type="dia_products", instrument=last.instrument, visit=last.visit, detector=DETECTOR)
    ready = DiaSourcesReady(
        group=last.group, instrument=last.instrument, visit=last.visit, detector=DETECTOR, observation=last,
        count=count, products=name, stages={}, summary={},
    )  # fmt: skip
    return AssociationDue(group=last.group, visit=last.visit, detector=DETECTOR, sources=ready)


@pytest.fixture(scope="module")
def night(module_folder: Path) -> Iterator[Night]:
    plan = load_schedule("own", n=5, seed=SEED)[::2]  # the visits between are of another field
    plan = [plan[0], *(replace(visit, n_snaps=1, exposure_time=30.0) for visit in plan[1:])]
    (module_folder / "clock.json").write_text(json.dumps(asdict(NightClock.starting(plan[-1].start_tai))), "utf-8")
    with EmbeddedPostgres(module_folder / "postgres") as server:
        night = Night(Settings(output=module_folder, detectors=(DETECTOR,)), server.url, plan)
        asyncio.run(night.play())
        yield night


def ask(night: Night, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["precover", "--output", str(night.settings.output), *map(str, arguments)])


async def forced(night: Night) -> Table:
    l1 = await L1Postgres.open(night.dsn)
    rows = await l1._read("DiaForcedSource", "o")
    await l1.close()
    return np.sort(rows, order="diaForcedSourceId")


@dataclass
class Watched:
    """Beside the job: the pixels that it measures on. `dies`: when, having stored a visit, it comes to the next one."""

    dies: bool
    products: dict[int, DiaProducts] = field(default_factory=dict)
    stored: int = 0

    def over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Precovery.store

        def watched(products: DiaProducts, objects: Table, **where: Any) -> Table:
            self.products[where["visit"]] = products
            return forced_sources(products, objects, **where)

        async def counted(own: Precovery, connection: asyncpg.Connection, owed: Owed) -> str:
            if self.dies and self.stored:
                raise Transient("the power was cut")
            said = await store(own, connection, owed)
            self.stored += 1
            return said

        monkeypatch.setattr("cluster.precover.forced_sources", watched)
        monkeypatch.setattr(Precovery, "store", counted)


def same(again: DiaProducts, before: DiaProducts) -> bool:
    """Bit by bit, but for when it was made."""
    columns = [name for name in before.sources.dtype.names or () if name != "timeProcessedMjdTai"]
    images = (again.difference, before.difference), (again.science, before.science)
    pairs = [(again.sources[name], before.sources[name]) for name in columns]
    pairs += [(getattr(a.pixels, plane), getattr(b.pixels, plane)) for a, b in images for plane in PLANES]
    pairs += [(a.psf.components, b.psf.components) for a, b in images]
    told = again.summary == before.summary and again.difference.midpoint == before.difference.midpoint
    return told and all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_what_is_new_in_the_third_visit_is_measured_in_the_first_two_on_the_same_pixels(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies half way, and goes on where it stood."""
    first, second, third = night.visits
    before = asyncio.run(forced(night))
    for dies, number in ((True, first), (False, second)):
        watched = Watched(dies)
        with monkeypatch.context() as patched:
            watched.over(patched)
            done = ask(night, "--night", first // 100_000)
        assert done.exit_code == (2 if dies else 0), done.output
        assert f"1 of {2 if dies else 1}: visit {number} detector {DETECTOR}: " in done.stdout
        assert list(watched.products) == [number]
        assert same(watched.products[number], night.on_time[number])

    rows = asyncio.run(forced(night))
    old = np.isin(rows["diaForcedSourceId"], before["diaForcedSourceId"])
    assert len(np.unique(rows["diaForcedSourceId"])) == len(rows)
    assert rows[old].tobytes() == before.tobytes()
    for visit in (first, second):
        made, products = rows[~old & (rows["visit"] == visit)], night.on_time[visit]
        begin = int((before["visit"] == visit).sum())
        numbers = range(begin, begin + len(made))
        assert made["diaForcedSourceId"].tolist() == [dia_forced_source_id(visit, DETECTOR, n) for n in numbers]
        there = forced_photometry(products.difference, products.science, made["ra"], made["dec"])
        assert all(np.array_equal(made[name], there[name]) for name in FLUXES)
    new = [number for number in np.unique(before["diaObjectId"]) if visit_detector_of(int(number))[0] == third]
    visits_of = [set(rows["visit"][rows["diaObjectId"] == number]) for number in new]
    assert visits_of.count({first, second, third}) > max(3, len(new) / 2)


def test_asked_again_it_finds_nothing_to_do_not_even_where_there_were_no_pixels(night: Night) -> None:
    done = ask(night)
    assert done.exit_code == 0
    assert done.stdout.endswith("0 visit-detectors to be looked at again\n")


def test_a_later_alert_has_the_precovered_rows_in_its_history(night: Night) -> None:
    """The third visit's pixels as those of a fourth."""
    first, second, third = night.visits
    later = replace(night.last(night.plan[2]), group="later", visit=third + 10)
    products = night.on_time[third]
    sources = products.sources.copy()
    sources["visit"] = later.visit
    sources["diaSourceId"] = [dia_source_id(later.visit, DETECTOR, n) for n in range(len(sources))]
    sources["midpointMjdTai"] += 0.001
    difference = replace(products.difference, midpoint=products.difference.midpoint + 86.4)
    fact = asyncio.run(night.associate(later, replace(products, sources=sources, difference=difference)))
    packets = AlertArchive(night.settings.alerts, alert_schema()).read(fact.path)
    alerts: list[Any] = [fastavro.schemaless_reader(io.BytesIO(p), alert_schema(), None) for p in packets]
    new = [a for a in alerts if a["diaObject"] and visit_detector_of(a["diaObject"]["diaObjectId"])[0] == third]
    histories = [{f["visit"] for f in a["prvDiaForcedSources"]} for a in new]
    assert {first, second, third} in histories


def test_a_raw_that_is_gone_is_named(night: Night) -> None:
    archive = ButlerArchive.open(night.settings.butler)
    exposure = night.last(night.plan[0]).exposure
    name = DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=exposure, detector=DETECTOR)
    Path(archive.uri(name).removeprefix("file://")).unlink()
    with pytest.raises(BadData, match=f"raw/LSSTCam/{exposure}/94"):
        ArchivedRaws(archive).last_of("LSSTCam", night.visits[0], DETECTOR)

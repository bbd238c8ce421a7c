"""What an associator is given in tests: the real database in memory, the real archive on disk, made pixels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fastavro
import numpy as np

from actors.associator import Associator
from backbone.alert_archive import AlertArchive
from backbone.journal import MemoryJournal
from backbone.l1 import Ids, Stored, VisitDetectorResult
from backbone.l1_memory import L1Memory
from cluster.pixels import MemoryPixels
from payloads.alert_production.alert_schema import alert_schema
from schemas.clock import ManualClock, mjd_from_tai
from schemas.errors import Transient
from schemas.events import AlertsReady, AssociationDue, Event
from schemas.identity import dia_source_id
from schemas.image import DiaProducts, Difference, MaskedImage, Psf, Stamp, VisitImage
from schemas.instrument import camera
from schemas.tables import Table
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

    def write(self, visit: int, detector: int, records: Sequence[bytes], ids: Ids, keys: Ids) -> str:
        path = self.archive.write(visit, detector, records, ids, keys)
        self.calls.append("written")
        return path

    def read(self, path: str) -> list[bytes]:
        return self.archive.read(path)

    def read_unchecked(self, path: str) -> list[bytes]:
        return self.archive.read_unchecked(path)

    def hashes(self, path: str) -> dict[int, bytes]:
        return self.archive.hashes(path)

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
            camera=camera("LSSTCam"),
            l1=self.kept.l1,
            archive=self.kept,
            pixels=self.pixels,
            chronicle=self.kept.journal,
            clock=self.clock,
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


async def ready(place: Place, event: AssociationDue, started: float = STARTED) -> AssociationDue:
    """Its pixels in the store."""
    await place.pixels.put(event.sources.products, products(event.visit, started))
    return event

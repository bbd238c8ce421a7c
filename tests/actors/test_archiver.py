from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from actors.archiver import Archiver
from actors.camera_reader import raw_id
from backbone.l1_memory import L1Memory
from cluster.pixels import MemoryPixels
from schemas.errors import Transient
from schemas.events import AlertsReady, DiaSourcesReady, RawArchived, RawReady
from schemas.identity import DatasetId
from schemas.image import Observation, Raw
from schemas.tables import Table
from tests.actors.fakes import FakeDaq, raw
from tests.backbone.l1_results import result

VISIT = 2026070500001


@dataclass
class FakeArchive:
    """Keeps everything once; `full`: its disk is."""

    full: bool = False
    raws: dict[str, Raw] = field(default_factory=dict)
    kept: dict[DatasetId, object] = field(default_factory=dict)
    visits: set[int] = field(default_factory=set)

    def put_raw(self, raw: Raw) -> tuple[str, str]:
        uri = f"file:///archive/{raw.observation.exposure}_{raw.detector}.fits"
        if self.full:
            raise Transient(f"{uri}: no room")
        self.raws.setdefault(uri, raw)
        return uri, raw.sha256

    def register_exposure(self, observation: Observation) -> None:
        self.visits.add(observation.visit)

    def put(self, dataset: DatasetId, kept: object, /) -> str:
        self.kept[dataset] = kept
        return f"file:///archive/{dataset}"


@dataclass
class Place:
    """An archive and all that an archiver is given; `archiver` makes a new one."""

    archive: FakeArchive = field(default_factory=FakeArchive)
    l1: L1Memory = field(default_factory=L1Memory)
    pixels: MemoryPixels = field(default_factory=MemoryPixels)
    daq: FakeDaq = field(default_factory=FakeDaq)

    def archiver(self) -> Archiver:
        return Archiver(archive=self.archive, l1=self.l1, pixels=self.pixels, daq=self.daq)


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def ready(observation: Callable[..., Observation]) -> RawReady:
    seen = observation(snap=1)
    return RawReady(group="g1", detector=94, observation=seen, raw=raw_id(seen, 94), sha256=raw(seen, 94).sha256)


def committed(detector: int = 94) -> AlertsReady:
    return AlertsReady(
        group="g1", instrument="LSSTCam", visit=VISIT, detector=detector, readout_ended=136.0, dia_sources=20,
        new_dia_objects=19, alerts=20, path="a.avro", stages={},
    )  # fmt: skip


async def test_a_raw_is_kept_and_told_with_its_place_and_checksum(place: Place, ready: RawReady) -> None:
    held = raw(ready.observation, 94)
    await place.pixels.put(ready.raw, held)
    facts = await place.archiver().react(ready)
    uri = "file:///archive/2026070500002_94.fits"
    assert facts == [
        RawArchived(group="g1", raw=ready.raw, uri=uri, sha256=ready.sha256, observation=ready.observation)
    ]
    assert place.archive.raws == {uri: held}
    assert place.daq.reads == []


async def test_a_raw_gone_from_the_store_is_archived_from_the_camera(place: Place, ready: RawReady) -> None:
    (archived,) = await place.archiver().react(ready)
    assert isinstance(archived, RawArchived)
    assert archived.sha256 == ready.sha256
    assert place.daq.reads == [(ready.observation.exposure, 94)]


async def test_a_new_archiver_says_the_same_of_the_same_raw_and_keeps_it_once(place: Place, ready: RawReady) -> None:
    assert await place.archiver().react(ready) == await place.archiver().react(ready)
    assert len(place.archive.raws) == 1


async def test_a_full_disk_and_a_dead_camera_are_transient_and_named(place: Place, ready: RawReady) -> None:
    place.archive.full = True
    with pytest.raises(Transient, match=r"2026070500002_94\.fits: no room"):
        await place.archiver().react(ready)
    place.daq.dead = True
    with pytest.raises(Transient, match="MC_O_20260705_000002 detector 94"):
        await place.archiver().react(ready)


async def test_the_figures_of_a_visit_detector_are_kept_with_its_seconds_before_its_raws_are(
    place: Place, measured: Callable[..., DiaSourcesReady]
) -> None:
    event = measured().model_copy(update={"summary": {"seeing": 0.7}, "stages": {"detect": 0.4}})
    assert await place.archiver().react(event) == []
    name = DatasetId(dataset_type="visit_summary", instrument="LSSTCam", visit=VISIT, detector=94)
    assert place.archive.kept == {name: {"seeing": 0.7, "cpu_s_detect": 0.4}}
    assert place.archive.visits == {VISIT}


async def test_the_sources_are_kept_as_they_were_committed_and_no_other_detectors(place: Place) -> None:
    for detector in (93, 94):
        await place.l1.store(result(VISIT, detector), [], 1.0)
    assert await place.archiver().react(committed()) == []
    (name,) = place.archive.kept
    assert name == DatasetId(dataset_type="dia_source", instrument="LSSTCam", visit=VISIT, detector=94)
    kept = place.archive.kept[name]
    assert isinstance(kept, np.ndarray)
    expected: Table = result(VISIT, 94).sources
    assert sorted(kept["diaSourceId"]) == sorted(expected["diaSourceId"])
    assert np.nansum(kept["psfFlux"]) == pytest.approx(float(np.nansum(expected["psfFlux"])))

"""The worker's own part: what it loads, keeps, reads again and hands on.

Snaps are reduced in earnest, on a CCD of few pixels. `process_visit` is replaced where the worker calls it: it needs
the stars of a thousand pixels squared, takes seconds, and is held to the sky in the tests of its payload and of the
whole night.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from actors.camera_reader import raw_id
from actors.ccd_worker import CcdWorker
from actors.reduction import KEPT_CONTEXTS, KEPT_VISITS
from backbone.butler_errors import NotKept
from cluster.pixels import MemoryPixels
from payloads.alert_production import pipeline
from payloads.alert_production.pipeline import Context
from schemas.clock import ManualClock
from schemas.errors import BadData, Transient
from schemas.events import DetectorFailed, DiaSourcesReady, NextVisitCanceled, RawReady, VisitAssigned
from schemas.identity import DatasetId, exposure_id
from schemas.image import Calibration, DiaProducts, Difference, MaskedImage, Observation, Psf, Template, VisitImage
from schemas.instrument import Camera, Detector, Format
from schemas.tables import REFCAT_DTYPE, empty, nulls
from schemas.wcs import Wcs
from tests.actors.fakes import FakeDaq, raw

Assigned = Callable[..., VisitAssigned]
Observed = Callable[..., Observation]

FORM = Format("E2V", 24, 20, 10, 54, 6)
"""An e2v CCD of few pixels."""
CAMERA = Camera("LSSTCam", tuple(Detector(i, f"R22_S{i}", "R22", FORM, (0.0, 0.0)) for i in range(90, 99)))
VISIT, NOW = 2026070500001, 200.0
SHAPE = FORM.height, FORM.width
BLANK = MaskedImage(np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint16), np.ones(SHAPE, np.float32))
PSF = Psf(np.full((1, 3, 3), 1 / 9, np.float32), 0, SHAPE)
WCS = Wcs((10.0, -30.0), (0.0, 0.0), np.diag([-5.6e-5, 5.6e-5]))


def context(detector: Detector) -> Context:
    flat, zero, sixteen = np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.float32), np.ones(16, np.float32)
    calibration = Calibration(
        zero, zero, flat, np.zeros(SHAPE, np.uint16), 1.5 * sixteen, 6 * sixteen, 1e5 * sixteen,
        np.zeros((16, 16), np.float32),
    )  # fmt: skip
    return Context(detector, calibration, Template(BLANK, WCS, PSF, "r"), nulls(REFCAT_DTYPE, 0))


@dataclass
class Shelves:
    """Earlier products of every detector; `asked`: for which detectors and filters. `bare`: there are none."""

    asked: list[tuple[int, str]] = field(default_factory=list)
    bare: bool = False

    def context_for(
        self, detector: Detector, ra: float, dec: float, rotation: float, physical_filter: str, day_obs: int
    ) -> Context:
        assert exposure_id(day_obs, 1)
        self.asked.append((detector.id, physical_filter))
        if self.bare:
            raise NotKept(f"calibration/LSSTCam/{detector.id}/{physical_filter} at {ra} {dec} {rotation} is not kept")
        return context(detector)


@dataclass
class Processing:
    """In the place of `process_visit`: keeps what it is given, empties the list of snaps, makes a catalogue of three.

    `bad`: refuses. `look`: is called before that, and what it says kept.
    """

    given: list[tuple[Sequence[MaskedImage], Sequence[Observation], Context, float]] = field(default_factory=list)
    bad: bool = False
    look: Callable[[], tuple[int, int]] = lambda: (0, 0)
    seen: list[tuple[int, int]] = field(default_factory=list)

    def __call__(
        self, snaps: list[MaskedImage], observations: Sequence[Observation], context: Context, *,
        stage: Callable[[str], AbstractContextManager[None]], processed: float,
    ) -> DiaProducts:  # fmt: skip
        self.given.append((tuple(snaps), observations, context, processed))
        snaps.clear()
        self.seen.append(self.look())
        if self.bad:
            raise BadData(f"{observations[0].image_name}: no stars")
        with stage("subtract"):
            image = VisitImage(BLANK, WCS, PSF, 1.0, "r", 0.0, 30.0)
        difference = Difference(BLANK, WCS, PSF, "r", 0.0, 30.0)
        return DiaProducts(empty("DiaSource", 3), (), difference, image, {"n_sources": 3.0})


@dataclass
class Place:
    """All that a worker is given; `worker` makes a new one, which remembers nothing."""

    processing: Processing
    products: Shelves = field(default_factory=Shelves)
    pixels: MemoryPixels = field(default_factory=MemoryPixels)
    daq: FakeDaq = field(default_factory=lambda: FakeDaq(FORM.raw_shape))

    def worker(self) -> CcdWorker:
        return CcdWorker(
            camera=CAMERA, products=self.products, pixels=self.pixels, daq=self.daq, clock=ManualClock(NOW)
        )


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    processing = Processing()
    monkeypatch.setattr(pipeline, "process_visit", processing)
    return Place(processing)


@pytest.fixture
def ready(observation: Observed) -> Callable[..., RawReady]:
    def make(snap: int, detector: int = 94, group: str = "g1", visit: int = VISIT) -> RawReady:
        seen = observation(group, visit, snap)
        sha256 = raw(seen, detector, FORM.raw_shape).sha256
        return RawReady(group=group, detector=detector, observation=seen, raw=raw_id(seen, detector), sha256=sha256)

    return make


def reduced(ready: RawReady) -> MaskedImage:
    pixels = raw(ready.observation, ready.detector, FORM.raw_shape)
    return pipeline.reduce_snap(pixels, context(CAMERA[ready.detector]))


async def test_what_a_visit_needs_is_loaded_when_it_is_assigned_and_not_again(
    place: Place, assigned: Assigned, ready: Callable[..., RawReady]
) -> None:
    worker = place.worker()
    assert await worker.react(assigned()) == []
    assert place.products.asked == [(94, "r_57")]
    for snap in (0, 1):
        await worker.react(ready(snap))
    assert place.products.asked == [(94, "r_57")]


async def test_only_the_last_snap_is_followed_by_sources(place: Place, ready: Callable[..., RawReady]) -> None:
    worker = place.worker()
    assert await worker.react(ready(0)) == []
    (fact,) = await worker.react(ready(1))
    assert isinstance(fact, DiaSourcesReady)
    name = DatasetId(dataset_type="dia_products", instrument="LSSTCam", visit=VISIT, detector=94)
    assert (fact.group, fact.visit, fact.detector, fact.count, fact.products) == ("g1", VISIT, 94, 3, name)
    assert fact.observation == ready(1).observation
    assert set(fact.stages) == {"remove_signature", "subtract"}
    assert isinstance(await place.pixels.get(name), DiaProducts)


async def test_what_was_made_of_a_visit_detector_that_failed_is_freed(
    place: Place, ready: Callable[..., RawReady]
) -> None:
    worker = place.worker()
    (first,) = await worker.react(ready(1))
    (other,) = await worker.react(ready(1, 95))
    assert isinstance(first, DiaSourcesReady)
    assert isinstance(other, DiaSourcesReady)
    for visit in (None, VISIT):
        failed = DetectorFailed(group="g1", visit=visit, detector=94, stage="associator", reason="bad rows")
        assert await place.worker().react(failed) == []
    assert await place.pixels.get(first.products) is None
    assert await place.pixels.get(other.products) is not None


async def test_the_snaps_are_reduced_and_handed_over_in_order(place: Place, ready: Callable[..., RawReady]) -> None:
    worker = place.worker()
    for snap in (0, 1):
        await worker.react(ready(snap))
    ((snaps, observations, used, processed),) = place.processing.given
    for snap in (0, 1):
        assert np.array_equal(snaps[snap].image, reduced(ready(snap)).image)
    assert list(observations) == [ready(0).observation, ready(1).observation]
    assert (used.detector.id, processed) == (94, NOW)


async def test_raws_held_are_not_asked_of_the_camera(place: Place, ready: Callable[..., RawReady]) -> None:
    worker = place.worker()
    for snap in (0, 1):
        await place.pixels.put(ready(snap).raw, raw(ready(snap).observation, 94, FORM.raw_shape))
        await worker.react(ready(snap))
    assert place.daq.reads == []


async def test_a_new_worker_that_was_told_nothing_makes_the_same_of_the_last_snap(
    place: Place, assigned: Assigned, ready: Callable[..., RawReady]
) -> None:
    first = place.worker()
    await first.react(assigned())
    await first.react(ready(0))
    (before,) = await first.react(ready(1))
    place.daq.reads.clear()
    (after,) = await place.worker().react(ready(1))
    assert isinstance(before, DiaSourcesReady)
    assert isinstance(after, DiaSourcesReady)
    assert after.event_id == before.event_id
    assert after.model_copy(update={"stages": {}}) == before.model_copy(update={"stages": {}})
    assert sorted(place.daq.reads) == [(VISIT, 94), (VISIT + 1, 94)]
    (snaps, seen, *_), (again, seen_again, *_) = place.processing.given
    assert all(np.array_equal(a.image, b.image) for a, b in zip(snaps, again, strict=True))
    assert list(seen) == list(seen_again)


async def test_an_earlier_snap_that_is_short_when_it_is_read_again_is_named(
    place: Place, ready: Callable[..., RawReady]
) -> None:
    place.daq.short.add(VISIT)
    with pytest.raises(BadData, match="MC_O_20260705_000001 detector 94: 8 of 16"):
        await place.worker().react(ready(1))


async def test_a_dead_camera_is_transient_and_the_next_attempt_goes_well(
    place: Place, ready: Callable[..., RawReady]
) -> None:
    worker = place.worker()
    place.daq.dead = True
    with pytest.raises(Transient, match="MC_O_20260705_000002 detector 94"):
        await worker.react(ready(1))
    place.daq.dead = False
    assert [e.kind for e in await worker.react(ready(1))] == ["DiaSourcesReady"]


async def test_a_raw_of_another_shape_is_bad_data_and_named(place: Place, ready: Callable[..., RawReady]) -> None:
    await place.pixels.put(ready(0).raw, raw(ready(0).observation, 94, (16, 3, 4)))
    with pytest.raises(BadData, match=r"MC_O_20260705_000001.* detector 94: segments are int32 \(16, 3, 4\)"):
        await place.worker().react(ready(0))


async def test_products_that_are_not_kept_are_bad_data_and_named(place: Place, assigned: Assigned) -> None:
    place.products.bare = True
    with pytest.raises(BadData, match="calibration/LSSTCam/94/r_57"):
        await place.worker().react(assigned())


@pytest.mark.parametrize("change", [{"band": ""}, {"image_type": "flat"}])
async def test_a_refused_visit_and_a_calibration_exposure_are_not_processed(
    place: Place, ready: Callable[..., RawReady], change: dict[str, str]
) -> None:
    event = ready(1)
    refused = event.model_copy(update={"observation": replace(event.observation, **change)})
    assert await place.worker().react(refused) == []
    assert place.products.asked == []
    assert place.daq.reads == []


async def test_a_canceled_visit_is_forgotten_and_can_still_be_processed(
    place: Place, assigned: Assigned, ready: Callable[..., RawReady]
) -> None:
    worker = place.worker()
    await worker.react(assigned())
    await worker.react(ready(0))
    assert await worker.react(NextVisitCanceled(group="g1")) == []
    assert held(worker) == (0, 0)
    assert [e.kind for e in await worker.react(ready(1))] == ["DiaSourcesReady"]


async def test_a_processed_visit_detector_is_forgotten_and_its_neighbour_is_not(
    place: Place, ready: Callable[..., RawReady]
) -> None:
    worker = place.worker()
    await worker.react(ready(0, 93))
    await worker.react(ready(0))
    await worker.react(ready(1))
    assert held(worker) == (1, 1)


async def test_what_is_being_processed_the_worker_holds_no_more_and_reads_again_should_it_fail(
    place: Place, assigned: Assigned, ready: Callable[..., RawReady]
) -> None:
    worker = place.worker()
    place.processing.look, place.processing.bad = lambda: held(worker), True
    await worker.react(assigned())
    await worker.react(ready(0))
    with pytest.raises(BadData, match="no stars"):
        await worker.react(ready(1))
    assert place.processing.seen == [(0, 0)]
    assert held(worker) == (0, 0)
    place.processing.bad = False
    place.daq.reads.clear()
    assert [e.kind for e in await worker.react(ready(1))] == ["DiaSourcesReady"]
    assert sorted(place.daq.reads) == [(VISIT, 94), (VISIT + 1, 94)]
    first, second = (snaps for snaps, *_ in place.processing.given)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))


async def test_visits_that_are_given_up_do_not_fill_the_memory(place: Place, ready: Callable[..., RawReady]) -> None:
    """Each loses its detector after the first snap; no event tells the worker so."""
    worker = place.worker()
    for number in range(6):
        await worker.react(ready(0, group=f"g{number}", visit=VISIT + 2 * number))
    contexts, snaps = held(worker)
    assert contexts <= KEPT_CONTEXTS
    assert snaps <= KEPT_VISITS


async def test_a_rehearsal_leaves_nothing_that_a_visit_would_use(place: Place, observation: Observed) -> None:
    worker = place.worker()
    worker.rehearse([raw(observation(snap=snap), 94, FORM.raw_shape) for snap in (0, 1)])
    assert len(place.processing.given) == 1
    assert held(worker)[1] == 0
    assert await place.pixels.get(DatasetId(dataset_type="dia_products")) is None


def held(worker: CcdWorker) -> tuple[int, int]:
    """How many contexts and reduced snaps a worker has in memory."""
    held = worker._reduction
    return len(held._contexts), sum(len(snaps) for snaps in held._snaps.values())


class WallClock(ManualClock):
    """Its night runs with the wall."""

    def wall_seconds(self, seconds: float) -> float:
        return seconds


@pytest.mark.parametrize(
    ("waits_s", "limit_s", "handed_over"), [(5.0, 10.0, False), (11.0, 10.0, True), (1e6, 0.0, False)]
)
async def test_pixels_that_waited_too_long_are_left_to_offline_processing(
    place: Place, ready: Callable[..., RawReady], waits_s: float, limit_s: float, handed_over: bool
) -> None:
    events = [ready(0), ready(1)]
    worker = CcdWorker(
        camera=CAMERA, products=place.products, pixels=place.pixels, daq=place.daq, hand_over_after_s=limit_s,
        clock=WallClock(events[1].observation.readout_ended + waits_s),
    )  # fmt: skip
    said = [fact for event in events for fact in await worker.react(event)]
    (fact,) = said
    assert isinstance(fact, DetectorFailed if handed_over else DiaSourcesReady)
    if isinstance(fact, DetectorFailed):
        assert (fact.stage, fact.visit) == ("overload", VISIT)
        assert place.products.asked == []

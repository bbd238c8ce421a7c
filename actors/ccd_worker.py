"""A CCD's worker: loads what a visit will need, reduces each snap as it comes, differences at the last one."""

import math
from collections.abc import Sequence

from actors.base import Actor
from actors.camera_reader import DataAcquisition, PixelStore, raw_of
from actors.reduction import Products, Reduction
from actors.stage_times import StageTimes
from schemas.clock import Clock, day_obs_of
from schemas.events import DetectorFailed, DiaSourcesReady, Event, NextVisitCanceled, RawReady, VisitAssigned
from schemas.identity import DatasetId
from schemas.image import SCIENCE, DiaProducts, Observation, Raw
from schemas.instrument import Camera


class CcdWorker(Actor):
    """Has the visit-detectors that are its own reduced, as their raws come.

    Pixels that waited for more than `hand_over_after_s` (wall seconds; 0: however long) are not begun: so the queue has
    an end, and the next visit can be in time.
    """

    def __init__(
        self, *, camera: Camera, products: Products, pixels: PixelStore, daq: DataAcquisition, clock: Clock,
        hand_over_after_s: float = 0.0,
    ) -> None:  # fmt: skip
        self._camera = camera
        self._pixels = pixels
        self._clock = clock
        self._hand_over_after_s = hand_over_after_s
        raws = _OnTheirWay(pixels, daq)
        self._reduction = Reduction(camera=camera, products=products, raws=raws, clock=clock)

    def rehearse(self, raws: Sequence[Raw]) -> DiaProducts:
        """See `Reduction.rehearse`."""
        return self._reduction.rehearse(raws)

    async def on_visit_assigned(self, event: VisitAssigned) -> Sequence[Event]:
        """Load calibrations, template and reference catalogue before the shutter closes."""
        plan = event.visit_plan
        night = day_obs_of(plan.start_time)
        self._reduction.load(event.group, event.detector, plan.ra, plan.dec, plan.rotation, plan.filters, night)
        return []

    async def on_next_visit_canceled(self, event: NextVisitCanceled) -> Sequence[Event]:
        """Free what was loaded."""
        self._reduction.forget(event.group)
        return []

    async def on_detector_failed(self, event: DetectorFailed) -> Sequence[Event]:
        """Nobody takes what was made of it: free that. Offline processing, which may make it again, begins later."""
        if event.visit is not None:
            await self._pixels.drop(products_id(self._camera.name, event.visit, event.detector))
        return []

    async def on_raw_ready(self, event: RawReady) -> Sequence[Event]:
        """Reduce the snap; at the last one make the difference image and its sources."""
        seen = event.observation
        if not seen.band or seen.image_type != SCIENCE:  # a refused visit, or none: its raws are archived, no more
            return []
        if self._too_late(seen):
            return self._handed_over(event)
        times = StageTimes()
        await self._reduction.reduced(seen, event.detector, times)
        if seen.snap < seen.n_snaps - 1:
            return []
        products = await self._reduction.products_of(seen, event.detector, times)
        ready = sources_ready(seen, event.detector, products, times, redone=0)
        await self._pixels.put(ready.products, products)
        return [ready]

    def _handed_over(self, event: RawReady) -> Sequence[Event]:
        """That it is left to offline processing; said of the last snap."""
        seen = event.observation
        if seen.snap < seen.n_snaps - 1:
            return []
        reason = f"its pixels waited for more than {self._hand_over_after_s:g} s: left to offline processing"
        return [
            DetectorFailed(
                group=event.group, visit=seen.visit, detector=event.detector, stage="overload", reason=reason
            )
        ]

    def _too_late(self, seen: Observation) -> bool:
        waited_s = self._clock.wall_seconds(self._clock.now() - seen.readout_ended)
        return 0.0 < self._hand_over_after_s < waited_s


def products_id(instrument: str, visit: int, detector: int) -> DatasetId:
    """The name of what alert production makes of a visit-detector."""
    return DatasetId(dataset_type="dia_products", instrument=instrument, visit=visit, detector=detector)


def sources_ready(
    last: Observation, detector: int, products: DiaProducts, times: StageTimes, *, redone: int
) -> DiaSourcesReady:
    """The fact that a visit-detector was differenced. `last`: the observation of its last snap."""
    name = products_id(last.instrument, last.visit, detector)
    return DiaSourcesReady(
        group=last.group, instrument=last.instrument, visit=last.visit, detector=detector, observation=last,
        count=len(products.sources), products=name, stages=times.seconds, redone=redone,
        summary={name: value for name, value in products.summary.items() if math.isfinite(value)},
    )  # fmt: skip


class _OnTheirWay:
    """Raws between the camera and the archive."""

    def __init__(self, pixels: PixelStore, daq: DataAcquisition) -> None:
        self._pixels = pixels
        self._daq = daq

    async def read(self, observation: Observation, detector: int) -> Raw:
        """From the pixel store, or else from the DAQ."""
        return await raw_of(self._pixels, self._daq, observation, detector)

"""A CCD's worker: loads what a visit will need, reduces each snap as it comes, differences at the last one."""

import math
from collections.abc import Sequence

from actors.base import Actor
from actors.camera_reader import DataAcquisition, PixelStore, raw_of
from actors.reduction import Products, Reduction
from actors.stage_times import StageTimes
from schemas.clock import Clock
from schemas.events import DiaSourcesReady, Event, NextVisitCanceled, RawReady, VisitAssigned
from schemas.identity import DatasetId
from schemas.image import DiaProducts, Observation, Raw
from schemas.instrument import Camera


class CcdWorker(Actor):
    """Has the visit-detectors that are its own reduced, as their raws come."""

    def __init__(
        self, *, camera: Camera, products: Products, pixels: PixelStore, daq: DataAcquisition, clock: Clock
    ) -> None:
        self._pixels = pixels
        raws = _OnTheirWay(pixels, daq)
        self._reduction = Reduction(camera=camera, products=products, raws=raws, clock=clock)

    def rehearse(self, raws: Sequence[Raw]) -> DiaProducts:
        """See `Reduction.rehearse`."""
        return self._reduction.rehearse(raws)

    async def on_visit_assigned(self, event: VisitAssigned) -> Sequence[Event]:
        """Load calibrations, template and reference catalogue before the shutter closes."""
        plan = event.visit_plan
        self._reduction.load(event.group, event.detector, plan.ra, plan.dec, plan.rotation, plan.filters)
        return []

    async def on_next_visit_canceled(self, event: NextVisitCanceled) -> Sequence[Event]:
        """Free what was loaded."""
        self._reduction.forget(event.group)
        return []

    async def on_raw_ready(self, event: RawReady) -> Sequence[Event]:
        """Reduce the snap; at the last one make the difference image and its sources."""
        seen = event.observation
        if not seen.band:  # a refused visit: its raws are archived, not processed
            return []
        times = StageTimes()
        await self._reduction.reduced(seen, event.detector, times)
        if seen.snap < seen.n_snaps - 1:
            return []
        products = await self._reduction.products_of(seen, event.detector, times)
        name = DatasetId(
            dataset_type="dia_products", instrument=seen.instrument, visit=seen.visit, detector=event.detector
        )
        await self._pixels.put(name, products)
        return [
            DiaSourcesReady(
                group=event.group,
                instrument=seen.instrument,
                visit=seen.visit,
                detector=event.detector,
                observation=seen,
                count=len(products.sources),
                products=name,
                stages=times.seconds,
                summary={name: value for name, value in products.summary.items() if math.isfinite(value)},
            )
        ]


class _OnTheirWay:
    """Raws between the camera and the archive."""

    def __init__(self, pixels: PixelStore, daq: DataAcquisition) -> None:
        self._pixels = pixels
        self._daq = daq

    async def read(self, observation: Observation, detector: int) -> Raw:
        """From the pixel store, or else from the DAQ."""
        return await raw_of(self._pixels, self._daq, observation, detector)

"""A CCD's worker: loads what a visit will need, reduces each snap as it comes, differences at the last one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from actors.base import Actor
from actors.camera_reader import DataAcquisition, PixelStore, raw_of
from actors.stage_times import StageTimes
from payloads.alert_production import pipeline
from payloads.alert_production.pipeline import Context
from schemas.clock import Clock
from schemas.events import DiaSourcesReady, Event, NextVisitCanceled, RawReady, VisitAssigned
from schemas.identity import DatasetId
from schemas.image import DiaProducts, MaskedImage, Observation, Raw
from schemas.instrument import Camera, Detector

KEPT_CONTEXTS = 4
"""Held at once, 0.33 GB each: a worker's share of the visit under way and of the next. More are read again."""

KEPT_VISITS = 2
"""Of which reduced snaps are held, 0.16 GB each: the one under way and the one before. Nobody says of a detector that
its other snap will never come."""


class Products(Protocol):
    """Where earlier products lie: calibrations, templates, the reference catalogue."""

    def context_for(self, detector: Detector, ra: float, dec: float, rotation: float, physical_filter: str) -> Context:
        """All that a visit-detector needs. Raises BadData naming what there is none of."""


class CcdWorker(Actor):
    """Runs `payloads.alert_production.pipeline` for the detectors that are its own.

    What it holds in memory (contexts, reduced snaps) is a cache: a new worker reads both again.
    """

    def __init__(
        self, *, camera: Camera, products: Products, pixels: PixelStore, daq: DataAcquisition, clock: Clock
    ) -> None:
        self._camera = camera
        self._products = products
        self._pixels = pixels
        self._daq = daq
        self._clock = clock
        self._contexts: dict[tuple[str, int], Context] = {}
        self._snaps: dict[str, dict[tuple[int, int], MaskedImage]] = {}

    def rehearse(self, raws: Sequence[Raw]) -> None:
        """Run the pipeline on the raws of one visit and forget the result: kernels are compiled, files are cached."""
        last = raws[-1].observation
        context = self._load(last.group, raws[-1].detector, last.ra, last.dec, last.rotation, last.physical_filter)
        snaps = [pipeline.reduce_snap(raw, context) for raw in raws]
        observations = [raw.observation for raw in raws]
        pipeline.process_visit(snaps, observations, context, stage=StageTimes(), processed=last.readout_ended)

    async def on_visit_assigned(self, event: VisitAssigned) -> Sequence[Event]:
        """Load calibrations, template and reference catalogue before the shutter closes."""
        plan = event.visit_plan
        self._load(event.group, event.detector, plan.ra, plan.dec, plan.rotation, plan.filters)
        return []

    async def on_next_visit_canceled(self, event: NextVisitCanceled) -> Sequence[Event]:
        """Free what was loaded."""
        for key in [k for k in self._contexts if k[0] == event.group]:
            del self._contexts[key]
        self._snaps.pop(event.group, None)
        return []

    async def on_raw_ready(self, event: RawReady) -> Sequence[Event]:
        """Reduce the snap; at the last one make the difference image and its sources."""
        seen = event.observation
        if not seen.band:  # a refused visit: its raws are archived, not processed
            return []
        times = StageTimes()
        await self._reduced(seen, event.detector, times)
        if seen.snap < seen.n_snaps - 1:
            return []
        products = await self._process(seen, event.detector, times)
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

    async def _process(self, last: Observation, detector: int, times: StageTimes) -> DiaProducts:
        observations = [_snap_of(last, snap) for snap in range(last.n_snaps)]
        snaps = [await self._reduced(observation, detector, times) for observation in observations]
        now = self._clock.now()
        return pipeline.process_visit(snaps, observations, self._taken(last, detector), stage=times, processed=now)

    def _taken(self, last: Observation, detector: int) -> Context:
        """What a visit-detector needs, held here no more: should it fail, all is read again."""
        context = self._load(last.group, detector, last.ra, last.dec, last.rotation, last.physical_filter)
        self._forget(last, detector)
        return context

    async def _reduced(self, observation: Observation, detector: int, times: StageTimes) -> MaskedImage:
        """A snap without its instrument's signature: from memory, or from its raw again."""
        key, held = (observation.exposure, detector), self._snaps_of(observation.group)
        if key not in held:
            raw = await raw_of(self._pixels, self._daq, observation, detector)
            seen = observation
            context = self._load(seen.group, detector, seen.ra, seen.dec, seen.rotation, seen.physical_filter)
            with times("remove_signature"):
                held[key] = pipeline.reduce_snap(raw, context)
        return held[key]

    def _snaps_of(self, group: str) -> dict[tuple[int, int], MaskedImage]:
        if group not in self._snaps:
            while len(self._snaps) >= KEPT_VISITS:
                del self._snaps[next(iter(self._snaps))]
            self._snaps[group] = {}
        return self._snaps[group]

    def _load(self, group: str, detector: int, ra: float, dec: float, rotation: float, physical_filter: str) -> Context:
        key = (group, detector)
        if key not in self._contexts:
            while len(self._contexts) >= KEPT_CONTEXTS:
                del self._contexts[next(iter(self._contexts))]
            self._contexts[key] = self._products.context_for(self._camera[detector], ra, dec, rotation, physical_filter)
        return self._contexts[key]

    def _forget(self, observation: Observation, detector: int) -> None:
        held = self._snaps_of(observation.group)
        for snap in range(observation.n_snaps):
            held.pop((observation.visit + snap, detector), None)
        self._contexts.pop((observation.group, detector), None)


def _snap_of(last: Observation, snap: int) -> Observation:
    """The observation of an earlier snap, as far as the last one tells: the camera numbers a visit's snaps in turn.

    Each snap's shutter opens when the one before is read out.
    """
    back = last.snap - snap
    name, number = last.image_name.rsplit("_", 1)
    earlier = back * (last.readout_ended - last.started)
    return replace(
        last,
        snap=snap,
        exposure=last.exposure - back,
        image_name=f"{name}_{int(number) - back:06d}",
        started=last.started - earlier,
        readout_ended=last.readout_ended - earlier,
    )

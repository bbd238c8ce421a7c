"""From a visit-detector's raws to its difference image and sources, wherever the raws come from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from actors.stage_times import StageTimes
from payloads.alert_production import pipeline
from payloads.alert_production.pipeline import Context
from schemas.clock import Clock
from schemas.identity import day_obs_of_visit
from schemas.image import DiaProducts, MaskedImage, Observation, Raw
from schemas.instrument import Camera, Detector

KEPT_CONTEXTS = 4
"""Held at once, 0.33 GB each: a worker's share of the visit under way and of the next. More are read again."""

KEPT_VISITS = 2
"""Of which reduced snaps are held, 0.16 GB each: the one under way and the one before. Nobody says of a detector that
its other snap will never come."""


class Products(Protocol):
    """Where earlier products lie: calibrations, templates, the reference catalogue."""

    def context_for(
        self, detector: Detector, ra: float, dec: float, rotation: float, physical_filter: str, day_obs: int
    ) -> Context:
        """All that a visit-detector of a night needs. Raises BadData naming what there is none of."""


class Raws(Protocol):
    """Where raws are: on their way from the camera, or in the archive."""

    async def read(self, observation: Observation, detector: int) -> Raw:
        """A detector's raw of an exposure. Raises BadData naming one that is not there, or damaged."""


class Reduction:
    """Runs `payloads.alert_production.pipeline`. The same raws make the same products, in time or a month later.

    What it holds in memory (contexts, reduced snaps) is a cache: a new one reads both again.
    """

    def __init__(self, *, camera: Camera, products: Products, raws: Raws, clock: Clock) -> None:
        self._camera = camera
        self._products = products
        self._raws = raws
        self._clock = clock
        self._contexts: dict[tuple[str, int], Context] = {}
        self._snaps: dict[str, dict[tuple[int, int], MaskedImage]] = {}

    def load(
        self, group: str, detector: int, ra: float, dec: float, rotation: float, physical_filter: str, day_obs: int
    ) -> Context:
        """Calibrations, template and reference catalogue of a visit-detector. Angles deg, ICRS."""
        key = (group, detector)
        if key not in self._contexts:
            while len(self._contexts) >= KEPT_CONTEXTS:
                del self._contexts[next(iter(self._contexts))]
            self._contexts[key] = self._products.context_for(
                self._camera[detector], ra, dec, rotation, physical_filter, day_obs
            )
        return self._contexts[key]

    async def reduced(self, observation: Observation, detector: int, times: StageTimes) -> MaskedImage:
        """A snap without its instrument's signature: from memory, or from its raw again."""
        key, held = (observation.exposure, detector), self._snaps_of(observation.group)
        if key not in held:
            raw = await self._raws.read(observation, detector)
            context = self._context_of(observation, detector)
            with times("remove_signature"):
                held[key] = pipeline.reduce_snap(raw, context)
        return held[key]

    async def products_of(self, last: Observation, detector: int, times: StageTimes) -> DiaProducts:
        """The difference image and its sources. `last`: the observation of the visit's last snap.

        Raises BadData naming what cannot be used or is not there.
        """
        observations = [_snap_of(last, snap) for snap in range(last.n_snaps)]
        snaps = [await self.reduced(observation, detector, times) for observation in observations]
        now = self._clock.now()
        return pipeline.process_visit(snaps, observations, self._taken(last, detector), stage=times, processed=now)

    def rehearse(self, raws: Sequence[Raw]) -> DiaProducts:
        """Run the pipeline on the raws of one visit and keep nothing of it: kernels are compiled, files are cached."""
        last = raws[-1].observation
        context = self._context_of(last, raws[-1].detector)
        snaps = [pipeline.reduce_snap(raw, context) for raw in raws]
        observations = [raw.observation for raw in raws]
        return pipeline.process_visit(snaps, observations, context, stage=StageTimes(), processed=last.readout_ended)

    def forget(self, group: str) -> None:
        """Free what is held of a visit."""
        for key in [k for k in self._contexts if k[0] == group]:
            del self._contexts[key]
        self._snaps.pop(group, None)

    def _context_of(self, seen: Observation, detector: int) -> Context:
        night = day_obs_of_visit(seen.visit)
        return self.load(seen.group, detector, seen.ra, seen.dec, seen.rotation, seen.physical_filter, night)

    def _taken(self, last: Observation, detector: int) -> Context:
        """What a visit-detector needs, held here no more: should it fail, all is read again."""
        context, held = self._context_of(last, detector), self._snaps_of(last.group)
        for snap in range(last.n_snaps):
            held.pop((last.visit + snap, detector), None)
        del self._contexts[last.group, detector]
        return context

    def _snaps_of(self, group: str) -> dict[tuple[int, int], MaskedImage]:
        if group not in self._snaps:
            while len(self._snaps) >= KEPT_VISITS:
                del self._snaps[next(iter(self._snaps))]
            self._snaps[group] = {}
        return self._snaps[group]


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

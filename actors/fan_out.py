"""From visits to detectors: one assignment, and later one readout, for each live detector."""

from collections.abc import Sequence
from typing import Protocol

from actors.base import Actor
from schemas.errors import BadData
from schemas.events import DetectorReadOut, Event, NextVisit, ReadoutEnded, VisitAssigned, VisitRefused
from schemas.image import Observation
from schemas.instrument import Camera


class Chronicle(Protocol):
    """What was told before: where an actor that remembers nothing looks."""

    async def facts(self, *kinds: str, group: str | None = None) -> list[Event]:
        """Facts of these kinds (of one group), oldest first."""


class FanOut(Actor):
    """Says `VisitAssigned` for each live detector when a visit is announced, `DetectorReadOut` when pixels wait."""

    def __init__(self, *, camera: Camera, live: Sequence[int], chronicle: Chronicle) -> None:
        self._camera = camera
        self._live = tuple(live)
        self._chronicle = chronicle
        self._plans: dict[str, NextVisit] = {}

    async def on_next_visit(self, event: NextVisit) -> Sequence[Event]:
        """Assign the visit, or refuse it with the reason."""
        self._plans[event.group] = event
        try:
            band = self._band(event)
        except BadData as error:
            return [VisitRefused(group=event.group, reason=str(error))]
        return [
            VisitAssigned(group=event.group, detector=detector, visit_plan=event, band=band) for detector in self._live
        ]

    async def on_readout_ended(self, event: ReadoutEnded) -> Sequence[Event]:
        """Have each live detector's pixels fetched, those of a refused visit too: every raw is archived."""
        if event.instrument != self._camera.name:
            return [VisitRefused(group=event.group, reason=f"pixels of {event.instrument}, not {self._camera.name}")]
        plan = await self._plan_of(event.group)
        if plan is None:
            reason = f"{event.image_name} was read out without a nextVisit; its pixels stay in the camera's buffer"
            return [VisitRefused(group=event.group, reason=reason)]
        observation = self._observation(event, plan)
        return [
            DetectorReadOut(group=event.group, detector=detector, observation=observation) for detector in self._live
        ]

    async def _plan_of(self, group: str) -> NextVisit | None:
        if group not in self._plans:
            for fact in await self._chronicle.facts("NextVisit", group=group):
                assert isinstance(fact, NextVisit)
                self._plans[group] = fact
        return self._plans.get(group)

    def _band(self, plan: NextVisit) -> str:
        if plan.instrument != self._camera.name:
            raise BadData(f"visit {plan.group} is for {plan.instrument}; this system serves {self._camera.name}")
        return self._camera.band_of(plan.filters)

    def _observation(self, event: ReadoutEnded, plan: NextVisit) -> Observation:
        try:
            band = self._band(plan)
        except BadData:  # refused when it was announced; an empty band says: archive, do not process
            band = ""
        return Observation(
            instrument=event.instrument, group=event.group, visit=event.exposure - event.snap, exposure=event.exposure,
            snap=event.snap, n_snaps=event.n_snaps, image_name=event.image_name, physical_filter=plan.filters,
            band=band, ra=plan.ra, dec=plan.dec, rotation=plan.rotation, exposure_time=event.exposure_time,
            started=event.started, readout_ended=event.readout_ended, survey=plan.survey,
        )  # fmt: skip

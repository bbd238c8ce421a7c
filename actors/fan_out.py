"""From visits to detectors: one assignment, and later one readout, for each live detector."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import structlog

from actors.base import Actor
from schemas.errors import BadData
from schemas.events import (
    DetectorReadOut,
    Event,
    NextVisit,
    NextVisitCanceled,
    ReadoutEnded,
    VisitAssigned,
    VisitDone,
    VisitRefused,
)
from schemas.image import SCIENCE, Observation
from schemas.instrument import Camera

_log = structlog.get_logger()

OPEN_S = 2 * 86400.0
"""What was told longer ago (s) is of no open visit: the camera's DAQ holds pixels for two days."""


class Chronicle(Protocol):
    """What was told before: where an actor that remembers nothing looks."""

    async def facts(self, *kinds: str, group: str | None = None, since: float = -math.inf) -> list[Event]:
        """Facts of these kinds (of one group), told since then (TAI s), oldest first."""


class FanOut(Actor):
    """Says `VisitAssigned` for each live detector when a visit is announced, `DetectorReadOut` when pixels wait.

    Announcement, cancellation and readout may come in any order: whichever comes later finds the others in the journal.
    """

    def __init__(self, *, camera: Camera, live: Sequence[int], chronicle: Chronicle) -> None:
        self._camera = camera
        self._live = tuple(live)
        self._chronicle = chronicle

    async def on_next_visit(self, event: NextVisit) -> Sequence[Event]:
        """Assign the visit, with the pixels that were read out before it was announced, or say why not."""
        told = await self._chronicle.facts("NextVisitCanceled", "ReadoutEnded", group=event.group)
        over = any(isinstance(fact, NextVisitCanceled) for fact in told)
        early = [self._read_out(fact, event, over) for fact in told if isinstance(fact, ReadoutEnded)]
        return [*self._assigned(event, over), *chain.from_iterable(early)]

    def _assigned(self, event: NextVisit, canceled: bool) -> Sequence[Event]:
        if canceled:
            return [VisitRefused(group=event.group, reason="it was canceled before it was announced")]
        if not event.on_sky:
            return [VisitRefused(group=event.group, reason="it looks at no sky: its exposures are archived, no more")]
        try:
            band = self._band(event)
        except BadData as error:
            return [VisitRefused(group=event.group, reason=str(error))]
        return [
            VisitAssigned(group=event.group, detector=detector, visit_plan=event, band=band) for detector in self._live
        ]

    async def on_readout_ended(self, event: ReadoutEnded) -> Sequence[Event]:
        """Have each live detector's pixels fetched, also those of a visit refused or over: every raw is archived.

        Pixels of a visit that was not announced wait in the camera's buffer until it is.
        """
        told = await self._chronicle.facts("NextVisit", "NextVisitCanceled", "VisitDone", group=event.group)
        plan = next((fact for fact in told if isinstance(fact, NextVisit)), None)
        if plan is None and event.instrument == self._camera.name:
            _log.warning("read out before its nextVisit", image=event.image_name)
            return []
        return self._read_out(event, plan, any(isinstance(fact, NextVisitCanceled | VisitDone) for fact in told))

    def _read_out(self, event: ReadoutEnded, plan: NextVisit | None, over: bool) -> Sequence[Event]:
        if plan is None or event.instrument != self._camera.name:
            return [VisitRefused(group=event.group, reason=f"pixels of {event.instrument}, not {self._camera.name}")]
        observation = self._observation(event, plan, over)
        return [
            DetectorReadOut(group=event.group, detector=detector, observation=observation) for detector in self._live
        ]

    def _band(self, plan: NextVisit) -> str:
        if plan.instrument != self._camera.name:
            raise BadData(f"visit {plan.group} is for {plan.instrument}; this system serves {self._camera.name}")
        return self._camera.band_of(plan.filters)

    def _observation(self, event: ReadoutEnded, plan: NextVisit, over: bool) -> Observation:
        processed = plan.on_sky and not over
        try:
            band = self._band(plan) if processed or event.image_type != SCIENCE else ""
        except BadData:  # refused when it was announced; an empty band says: archive, do not process
            band = ""
        return observation_of(event, plan, band)


def observation_of(readout: ReadoutEnded, plan: NextVisit, band: str) -> Observation:
    """What the camera's word and the plan of the visit together say of an exposure."""
    return Observation(
        instrument=readout.instrument, group=readout.group, visit=readout.exposure - readout.snap,
        exposure=readout.exposure, snap=readout.snap, n_snaps=readout.n_snaps, image_name=readout.image_name,
        physical_filter=plan.filters, band=band, ra=plan.ra, dec=plan.dec, rotation=plan.rotation,
        exposure_time=readout.exposure_time, started=readout.started, readout_ended=readout.readout_ended,
        survey=plan.survey, image_type=readout.image_type,
    )  # fmt: skip

"""Keeps count of a visit: `VisitDone` with its manifest when every assigned detector has a result."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.base import Actor
from actors.fan_out import OPEN_S, Chronicle
from schemas.clock import Clock
from schemas.events import (
    AlertsReady,
    AlertsSent,
    DetectorFailed,
    DetectorManifest,
    DetectorReadOut,
    DiaSourcesReady,
    Event,
    NextVisitCanceled,
    RawReady,
    VisitAmended,
    VisitAssigned,
    VisitDone,
)

PIXELS_LATE_S = 60.0
"""Seconds after a visit's expected end, or after this keeper first heard of it, whichever is later, at which a
detector without pixels is given up: what was exposed while the system was down is late, not lost."""

_HISTORY = (
    "VisitAssigned", "RawReady", "DiaSourcesReady", "AlertsReady", "AlertsSent", "DetectorFailed",
    "NextVisitCanceled", "VisitDone",
)  # fmt: skip


@dataclass
class _Visit:
    waits_from: float
    snaps: int
    visit: int | None = None
    detectors: dict[int, DetectorManifest] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)

    def note(self, detector: int, **changes: object) -> None:
        known = self.detectors.get(detector, DetectorManifest(detector=detector))
        self.detectors[detector] = known.model_copy(update=changes)

    @property
    def waiting_for_pixels(self) -> list[int]:
        """Detectors whose last snap has not come, and that have no result."""
        return [d for d, m in self.detectors.items() if m.raws < self.snaps and d not in self.ended]


class VisitKeeper(Actor):
    """Counts what became of each detector of each visit, and gives up those whose pixels never come."""

    def __init__(self, *, chronicle: Chronicle, clock: Clock) -> None:
        self._chronicle = chronicle
        self._clock = clock
        self._visits: dict[str, _Visit] = {}
        self._done: set[str] = set()

    async def take_up(self) -> None:
        """Wait for the visits that the journal says are open: also the one of which nothing more comes ends."""
        since = self._clock.now() - OPEN_S
        self._done = {fact.group for fact in await self._chronicle.facts("VisitDone", since=since)}
        for group in {fact.group for fact in await self._chronicle.facts("VisitAssigned", since=since)}:
            await self._visit(group)

    async def on_visit_assigned(self, event: VisitAssigned) -> Sequence[Event]:
        """One more detector to wait for."""
        return await self._after(event)

    async def on_raw_ready(self, event: RawReady) -> Sequence[Event]:
        """Its pixels came."""
        return await self._after(event)

    async def on_dia_sources_ready(self, event: DiaSourcesReady) -> Sequence[Event]:
        """It was differenced."""
        return await self._after(event)

    async def on_alerts_ready(self, event: AlertsReady) -> Sequence[Event]:
        """It is committed."""
        return await self._after(event)

    async def on_alerts_sent(self, event: AlertsSent) -> Sequence[Event]:
        """Its alerts are out: one detector has ended well, maybe after its visit."""
        return await self._after(event) or await self._amended(event)

    async def on_detector_failed(self, event: DetectorFailed) -> Sequence[Event]:
        """One detector has ended badly."""
        return await self._after(event)

    async def on_next_visit_canceled(self, event: NextVisitCanceled) -> Sequence[Event]:
        """Give up the detectors whose pixels are not complete; what was exposed to the end is processed."""
        visit = await self._visit(event.group)
        if visit is None:
            return []
        told = [f for f in await self._chronicle.facts("DetectorReadOut", group=event.group)
                if isinstance(f, DetectorReadOut)]  # fmt: skip
        exposed = {f.detector for f in told if f.observation.band and f.observation.snap >= visit.snaps - 1}
        return [
            DetectorFailed(group=event.group, visit=None, detector=detector, stage="canceled", reason=event.reason)
            for detector in visit.waiting_for_pixels if detector not in exposed
        ]  # fmt: skip

    def overdue(self) -> Sequence[Event]:
        """What is given up at this time of the clock, because pixels never came."""
        late = [(g, v) for g, v in self._visits.items() if self._is_late(v)]
        return [
            DetectorFailed(
                group=group, visit=visit.visit, detector=detector, stage="camera",
                reason=f"pixels not complete {PIXELS_LATE_S:.0f} s after they were due",
            )
            for group, visit in late
            for detector in visit.waiting_for_pixels
        ]  # fmt: skip

    def _is_late(self, visit: _Visit) -> bool:
        return self._clock.wall_seconds(self._clock.now() - visit.waits_from) > PIXELS_LATE_S

    async def _after(self, event: Event) -> Sequence[Event]:
        visit = await self._visit(event.group)
        if visit is None:
            return []
        _count(visit, event)
        if len(visit.ended) < len(visit.detectors) or event.group in self._done:
            return []
        self._done.add(event.group)
        del self._visits[event.group]
        manifests = tuple(visit.detectors[d] for d in sorted(visit.detectors))
        return [VisitDone(group=event.group, visit=visit.visit, detectors=manifests)]

    async def _amended(self, event: AlertsSent) -> Sequence[Event]:
        """What the visit's manifest would say of a detector now, if it says that this was given up."""
        if event.group not in self._done:
            return []
        facts = await self._chronicle.facts(*_HISTORY, group=event.group)
        said = [each for fact in facts if isinstance(fact, VisitDone) for each in fact.detectors]
        if not any(each.detector == event.detector and each.gave_up for each in said):
            return []
        count = _Visit(0.0, 0)
        for fact in [*facts, event]:
            _count(count, fact)
        manifest = count.detectors[event.detector]
        return [VisitAmended(group=event.group, visit=event.visit, detector=event.detector, manifest=manifest)]

    async def _visit(self, group: str) -> _Visit | None:
        """The visit's count; begun from the journal, so that a new keeper knows what the last one did."""
        if group in self._done:
            return None
        if group not in self._visits:
            facts = await self._chronicle.facts(*_HISTORY, group=group)
            plan = next((f.visit_plan for f in facts if isinstance(f, VisitAssigned)), None)
            if plan is None or any(isinstance(f, VisitDone) for f in facts):
                return None
            waits_from = max(plan.start_time + plan.duration, self._clock.now())
            visit = _Visit(waits_from, snaps=max(plan.n_images, 1))
            for fact in facts:
                _count(visit, fact)
            self._visits[group] = visit
        return self._visits[group]


def _count(visit: _Visit, event: Event) -> None:
    """Bring the count up to an event; the same event again changes nothing but the number of raws it proves."""
    match event:
        case VisitAssigned():
            visit.note(event.detector)
        case RawReady():
            visit.visit = event.observation.visit
            known = visit.detectors.get(event.detector, DetectorManifest(detector=event.detector))
            visit.note(event.detector, raws=max(known.raws, event.observation.snap + 1))
        case DiaSourcesReady():
            visit.visit = event.visit
            visit.note(event.detector, dia_sources=event.count)
        case AlertsReady():
            visit.visit = event.visit
            visit.note(event.detector, alerts_made=event.alerts, dia_sources=event.dia_sources)
        case AlertsSent():
            visit.ended.add(event.detector)
            visit.note(
                event.detector, alerts_made=event.made, alerts_sent=event.sent,
                alerts_acknowledged=event.acknowledged, alerts_reduced=event.reduced, failed=event.failed, gave_up="",
            )  # fmt: skip
        case DetectorFailed():
            visit.ended.add(event.detector)
            visit.note(event.detector, gave_up=f"{event.stage}: {event.reason}")
        case _:
            return

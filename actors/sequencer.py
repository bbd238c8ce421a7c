"""The order of association: patches of sky are taken in order of visit time.

A DIAObject belongs to whoever sees it first. For neighbouring and repeated visits to agree on who that was, a
visit-detector is associated only after every earlier one that overlaps it on the sky has a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.base import Actor
from actors.fan_out import OPEN_S, Chronicle
from schemas.clock import Clock
from schemas.events import (
    AlertsReady,
    AssociationDue,
    DetectorFailed,
    DiaSourcesReady,
    Event,
    OfflineFailed,
    VisitAssigned,
)
from schemas.instrument import Camera
from schemas.pointing import center_of
from schemas.wcs import separation_arcsec

OVERLAP_ARCSEC = 1200.0
"""Centres closer than this may overlap: a CCD's diagonal (1158 arcsec) and the pointing's error."""

_HISTORY = ("VisitAssigned", "DiaSourcesReady", "AlertsReady", "DetectorFailed", "OfflineFailed", "AssociationDue")

Key = tuple[str, int]


@dataclass
class _Open:
    """A visit-detector without a result: where, when, and its sources once they are measured."""

    start_time: float
    ra: float
    dec: float
    sources: DiaSourcesReady | None = None
    released: bool = False


class Sequencer(Actor):
    """Says `AssociationDue` when a visit-detector's turn has come."""

    def __init__(self, *, camera: Camera, chronicle: Chronicle, clock: Clock) -> None:
        self._camera = camera
        self._chronicle = chronicle
        self._clock = clock
        self._open: dict[Key, _Open] = {}
        self._closed: set[Key] = set()
        self._committed: set[Key] = set()
        self._remembers = False

    async def on_visit_assigned(self, event: VisitAssigned) -> Sequence[Event]:
        """A visit-detector that others may have to wait for."""
        return await self._after(event)

    async def on_dia_sources_ready(self, event: DiaSourcesReady) -> Sequence[Event]:
        """Whose turn it is, now that it is ready."""
        return await self._after(event)

    async def on_alerts_ready(self, event: AlertsReady) -> Sequence[Event]:
        """Whose turn it is, now that it is associated."""
        return await self._after(event)

    async def on_detector_failed(self, event: DetectorFailed) -> Sequence[Event]:
        """It will never be: nobody waits for it."""
        return await self._after(event)

    async def on_offline_failed(self, event: OfflineFailed) -> Sequence[Event]:
        """Nor will it be offline."""
        return await self._after(event)

    async def _after(self, event: Event) -> Sequence[Event]:
        if not self._remembers:
            for fact in await self._chronicle.facts(*_HISTORY, since=self._clock.now() - OPEN_S):
                self._note(fact)
            self._remembers = True
        self._note(event)
        return self._due(event)

    def _note(self, event: Event) -> None:
        key = (event.group, getattr(event, "detector", -1))
        match event:
            case VisitAssigned() if key not in self._closed:
                self._open.setdefault(key, self._place(event))
            case DiaSourcesReady() if key in self._open:
                self._open[key].sources = event
            case DiaSourcesReady() if event.redone and key not in self._committed:  # it had failed, and is there
                self._open[key] = self._redone(event)
            case AssociationDue() if key in self._open:
                self._open[key].released = True
            case AlertsReady() | DetectorFailed() | OfflineFailed():
                self._closed.add(key)
                self._open.pop(key, None)
                if isinstance(event, AlertsReady):
                    self._committed.add(key)
            case _:
                return

    def _place(self, event: VisitAssigned) -> _Open:
        plan, detector = event.visit_plan, self._camera[event.detector]
        return _Open(plan.start_time, *center_of(detector, plan.ra, plan.dec, plan.rotation))

    def _redone(self, event: DiaSourcesReady) -> _Open:
        seen = event.observation
        place = center_of(self._camera[event.detector], seen.ra, seen.dec, seen.rotation)
        return _Open(seen.started, *place, sources=event)

    def _due(self, event: Event) -> list[Event]:
        """Those whose turn it is; the one just heard of is said again, in case the first saying was lost."""
        due: list[Event] = []
        for key, entry in self._open.items():
            said = entry.released and not (isinstance(event, DiaSourcesReady) and event is entry.sources)
            if entry.sources is not None and not said and not self._must_wait(key, entry):
                entry.released = True
                due.append(_turn(*key, entry.sources))
        return due

    def _must_wait(self, key: Key, entry: _Open) -> bool:
        """For those of the same sky that are earlier, or later and under way: a late one does not push in."""
        return any(
            (other.released or (other.start_time, other_key) < (entry.start_time, key))
            and other_key[0] != key[0]
            and float(separation_arcsec(other.ra, other.dec, entry.ra, entry.dec)) < OVERLAP_ARCSEC
            for other_key, other in self._open.items()
        )


def _turn(group: str, detector: int, sources: DiaSourcesReady) -> AssociationDue:
    return AssociationDue(group=group, visit=sources.visit, detector=detector, sources=sources, redone=sources.redone)

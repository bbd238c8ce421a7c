"""Finds the visit-detectors that failed and can be redone: those of which the archive has all raws."""

from collections.abc import Sequence
from dataclasses import replace

from actors.base import Actor
from actors.fan_out import OPEN_S, Chronicle
from schemas.clock import Clock
from schemas.events import (
    AlertsReady,
    DetectorFailed,
    Event,
    OfflineDue,
    OfflineFailed,
    RawArchived,
    VisitAssigned,
)
from schemas.image import Observation

NOT_REDONE = ("canceled", "alert_emitter")
"""Stages: of the one nobody wants a result; of the other there is one, whose alerts are still owed."""

MAX_REDONE = 3
"""Times: what was redone may be lost on its way to the database, with the process that held it."""

_HISTORY = ("VisitAssigned", "RawArchived", "AlertsReady", "OfflineFailed")

Key = tuple[str, int]


class OfflinePlanner(Actor):
    """Says `OfflineDue` when a visit-detector has failed and its last raw is archived, whichever comes last.

    Of one that was committed all the same it says `AlertsReady` again: its alerts are to be sent.
    """

    def __init__(self, *, chronicle: Chronicle, clock: Clock) -> None:
        self._chronicle = chronicle
        self._clock = clock
        self._failed: dict[Key, DetectorFailed] = {}
        self._remembers = False

    async def on_detector_failed(self, event: DetectorFailed) -> Sequence[Event]:
        """If its raws are there already, now; else when they are."""
        await self._remember()
        self._failed[event.group, event.detector] = event
        return await self._due((event.group, event.detector))

    async def on_raw_archived(self, event: RawArchived) -> Sequence[Event]:
        """One more raw of one that failed, maybe."""
        await self._remember()
        assert event.raw.detector is not None
        return await self._due((event.group, event.raw.detector))

    async def on_offline_failed(self, event: OfflineFailed) -> Sequence[Event]:
        """What was redone and did not reach the database is redone once more."""
        await self._remember()
        return await self._due((event.group, event.detector)) if event.stage == "associator" else []

    async def _remember(self) -> None:
        if not self._remembers:
            facts = await self._chronicle.facts("DetectorFailed", since=self._clock.now() - OPEN_S)
            self._failed = {(f.group, f.detector): f for f in facts if isinstance(f, DetectorFailed)}
            self._remembers = True

    async def _due(self, key: Key) -> Sequence[Event]:
        failed = self._failed.get(key)
        if failed is None or failed.stage in NOT_REDONE:
            return []
        facts = await self._chronicle.facts(*_HISTORY, group=key[0])
        committed = [f for f in facts if isinstance(f, AlertsReady) and f.detector == key[1]]
        if committed:  # by one who died before he could say so: what follows from it is owed, if it was not told yet
            return committed
        last = _last_of([f.observation for f in facts if isinstance(f, RawArchived) and f.raw.detector == key[1]])
        band = next((f.band for f in facts if isinstance(f, VisitAssigned) and f.detector == key[1]), "")
        redone = 1 + sum(isinstance(f, OfflineFailed) and f.detector == key[1] for f in facts)
        if last is None or not band or redone > MAX_REDONE:
            return []
        # The band of pixels that came when their visit had been given up is empty: not to be processed promptly.
        seen, reason = replace(last, band=band), f"{failed.stage}: {failed.reason}"
        due = OfflineDue(
            group=key[0], visit=last.visit, detector=key[1], observation=seen, reason=reason, redone=redone
        )
        return [due]


def _last_of(raws: Sequence[Observation]) -> Observation | None:
    """The visit's last exposure, if all are there."""
    snaps = {raw.snap: raw for raw in raws}
    last = snaps.get(max((raw.n_snaps for raw in raws), default=0) - 1)
    return last if last is not None and len(snaps) == last.n_snaps else None

"""Tells brokers, besides the alerts, when a night and a visit begin and end, and what became of each detector.

A notice is made as a fact, `NoticeDue`, which holds its very bytes, and only then sent: whoever sends it again sends
the same.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from actors.alert_emitter import REDUCED
from actors.associator import PacketArchive
from actors.base import Actor
from actors.fan_out import Chronicle
from backbone import notices
from backbone.l1 import L1Database, Outbox
from backbone.notices import Notice
from backbone.signing_key import SigningKey
from backbone.visit_stream import NoticeSink
from schemas.clock import Clock, day_obs_of, mjd_from_tai
from schemas.errors import BadData
from schemas.events import (
    DetectorManifest,
    Event,
    NextVisit,
    NightBegan,
    NightEnded,
    NoticeDue,
    NoticeSent,
    VisitAmended,
    VisitAssigned,
    VisitDone,
)
from schemas.identity import day_obs_of_visit


class Herald(Actor):
    """Makes the notices of a night, and sends each until the broker has acknowledged it."""

    def __init__(
        self, *, l1: L1Database, archive: PacketArchive, sink: NoticeSink, chronicle: Chronicle, clock: Clock,
        signing_key: SigningKey, alert_topic: str, live: Sequence[int],
    ) -> None:  # fmt: skip
        self._l1 = l1
        self._archive = archive
        self._sink = sink
        self._chronicle = chronicle
        self._clock = clock
        self._signing_key = signing_key
        self._alert_topic = alert_topic
        self._live = tuple(live)
        self._begun: set[str] = set()

    async def on_night_began(self, event: NightBegan) -> Sequence[Event]:
        """Which night, where its alerts will be, and who signs."""
        fields = {
            "dayObs": event.day_obs, "timeMjdTai": mjd_from_tai(event.at), "alertTopic": self._alert_topic,
            "detectors": self._live, "digest": notices.DIGEST, "keyId": self._signing_key.key_id,
            "publicKey": self._signing_key.public_pem,
        }  # fmt: skip
        return [_due("night_begins", str(event.day_obs), event.day_obs, fields)]

    async def on_night_ended(self, event: NightEnded) -> Sequence[Event]:
        """Which night, and of how many visits."""
        fields = {"dayObs": event.day_obs, "timeMjdTai": mjd_from_tai(event.at), "visits": event.visits}
        return [_due("night_ends", f"{event.day_obs}/{event.visits}", event.day_obs, fields)]

    async def on_visit_assigned(self, event: VisitAssigned) -> Sequence[Event]:
        """At the first detector of a visit: where it will look. A new herald says it again, and is not heard twice."""
        if event.group in self._begun:
            return []
        self._begun.add(event.group)
        plan = event.visit_plan
        day_obs = day_obs_of(plan.start_time)
        fields = {
            "dayObs": day_obs, "group": plan.group, "instrument": plan.instrument, "ra": plan.ra, "dec": plan.dec,
            "rotation": plan.rotation, "filter": plan.filters, "band": event.band,
            "startMjdTai": mjd_from_tai(plan.start_time), "duration": plan.duration, "nImages": plan.n_images,
            "observationReason": plan.survey or None, "detectors": self._live,
        }  # fmt: skip
        return [_due("visit_begins", plan.group, day_obs, fields, group=plan.group)]

    async def on_visit_done(self, event: VisitDone) -> Sequence[Event]:
        """The manifest of a visit."""
        told = [await self._detector(event.visit, manifest) for manifest in event.detectors]
        day_obs = day_obs_of_visit(event.visit) if event.visit is not None else await self._day_obs_of(event.group)
        fields = {
            "dayObs": day_obs, "group": event.group, "visit": event.visit,
            **{name: sum(one[name] for one in told) for name in ("diaSources", "made", "sent", "acknowledged")},
            "detectors": told,
        }  # fmt: skip
        return [_due("visit_ends", event.group, event.visit or day_obs, fields, group=event.group)]

    async def on_visit_amended(self, event: VisitAmended) -> Sequence[Event]:
        """What became of a detector of a visit after it had ended."""
        told = await self._detector(event.visit, event.manifest)
        fields = {"dayObs": day_obs_of_visit(event.visit), "group": event.group, "visit": event.visit, "detector": told}
        return [_due("visit_amended", f"{event.group}/{event.detector}", event.visit, fields, group=event.group)]

    async def on_notice_due(self, event: NoticeDue) -> Sequence[Event]:
        """Sign it and send it.

        Raises Transient while the broker does not acknowledge it, BadData if it refuses it for what it is.
        """
        signed = Notice.signed(event.key, event.value, self._signing_key)
        (error,) = await self._sink.send([signed])
        if error is not None:
            raise type(error)(f"the notice {event.notice} is not acknowledged: {error}")
        return [NoticeSent(group=event.group, notice=event.notice, at=self._clock.now())]

    async def _day_obs_of(self, group: str) -> int:
        """Of a visit that has no number, since no pixels came."""
        for fact in await self._chronicle.facts("NextVisit", group=group):
            if isinstance(fact, NextVisit):
                return day_obs_of(fact.start_time)
        raise BadData(f"the visit {group} ended and was never announced")

    async def _detector(self, visit: int | None, manifest: DetectorManifest) -> dict[str, Any]:
        """What became of a detector's alerts: the database's word where it has one, else the keeper's."""
        outbox = await self._l1.outbox(visit, manifest.detector) if visit is not None else None
        told: dict[str, Any] = {
            "detector": manifest.detector, "raws": manifest.raws, "diaSources": manifest.dia_sources,
            "made": manifest.alerts_made, "sent": manifest.alerts_sent, "acknowledged": manifest.alerts_acknowledged,
            "reduced": manifest.alerts_reduced, "failed": manifest.failed, "unacknowledged": [],
            "gaveUp": manifest.gave_up, "digest": notices.digest_of({}),
        }  # fmt: skip
        if outbox is None:
            return told
        return told | _alerts_of(outbox) | await self._digest(outbox)

    async def _digest(self, outbox: Outbox) -> dict[str, str | None]:
        """The digest of what was acknowledged, as archived; of a file that cannot be used none, and why."""
        try:
            hashes = await asyncio.to_thread(self._archive.hashes, outbox.path)
        except BadData as error:
            return {"digest": None, "digestLacks": str(error)}
        return {"digest": notices.digest_of({i: hashes[i] for i in outbox.alert_ids[~outbox.owed].tolist()})}


def _alerts_of(outbox: Outbox) -> dict[str, Any]:
    owed, failed = outbox.alert_ids[outbox.owed].tolist(), dict(outbox.failures)
    reduced, acknowledged = failed.pop(REDUCED, 0), outbox.n_alerts - len(owed)
    return {
        "diaSources": outbox.dia_sources, "made": outbox.n_alerts, "acknowledged": acknowledged,
        "sent": acknowledged + sum(failed.values()), "reduced": reduced, "failed": failed,
        "unacknowledged": sorted(owed),
    }  # fmt: skip


def _due(kind: str, name: str, key: int, fields: dict[str, Any], *, group: str = "") -> NoticeDue:
    return NoticeDue(group=group, notice=f"{kind}/{name}", key=str(key), value=notices.text_of(kind, fields))

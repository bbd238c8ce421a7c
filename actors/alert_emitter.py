"""Sends what was committed to the broker, whole and lite, and counts its answers one by one."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from actors.associator import PacketArchive
from actors.base import Actor
from backbone.alert_stream import Alert, AlertSink, Delivery
from backbone.l1 import L1Database, Outbox
from payloads.alert_production.alert_schema import frame
from payloads.alert_production.lite import lite
from payloads.alert_production.smaller_cutouts import reduced
from schemas.errors import BadData, Broken, Transient
from schemas.events import AlertsReady, AlertsSent, Event

CUTOUTS, ARCHIVED_AS = "cutouts", "archived-sha256"
"""Headers of an alert sent with smaller cutouts: how small; SHA-256, hex, of the packet as it was made and archived,
for those who hold what they received to a manifest."""

LITE_TRIES = 2
"""How often a lite alert is sent; each try lasts as long as the broker is given for an answer."""

_FRAME_BYTES = len(frame(b""))
_LITE, REDUCED = "lite: ", "too large: sent with smaller cutouts"
"""Keys of an outbox's failures: what became of alerts that are not owed. They outlive the attempt."""


class AlertEmitter(Actor):
    """Sends the packets of a visit-detector, byte for byte as archived, keyed by their object.

    What the broker acknowledged is noted alert by alert; what it did not is sent again at the next attempt. What is
    refused as too large is sent with smaller cutouts, down to none, and says so in its headers.

    A lite alert follows its whole one: in the attempt in which that is acknowledged, before this is noted, so that
    after a crash both are sent again. Whole alerts are the promise, lite ones a courtesy: what the broker still owes
    of them after `LITE_TRIES` is counted and told; it holds up the next detector's, no longer.
    """

    def __init__(self, *, l1: L1Database, archive: PacketArchive, sink: AlertSink, lite_sink: AlertSink) -> None:
        self._l1 = l1
        self._archive = archive
        self._sink = sink
        self._lite_sink = lite_sink

    async def on_alerts_ready(self, event: AlertsReady) -> Sequence[Event]:
        """Send what the broker has not acknowledged. Raises Transient while it owes any.

        Raises BadData, and sends nothing, if a packet is no alert of the schema that its header will name.
        """
        outbox = await self._outbox(event)
        owed = np.flatnonzero(outbox.owed)
        alerts, lites = self._alerts(outbox, owed)
        deliveries, smaller = await self._send_whole(alerts)
        arrived = [not _failed(delivery) for delivery in deliveries]
        lite_failures = await self._send_lite([each for each, there in zip(lites, arrived, strict=True) if there])
        times = outbox.acknowledged_at.copy()
        times[owed] = [delivery.acknowledged_at for delivery in deliveries]
        failures = Counter(delivery.error for delivery in deliveries if _failed(delivery))
        asides = asides_of(outbox.failures) + Counter({REDUCED: smaller}) + lite_failures
        await self._l1.mark_sent(event.visit, event.detector, times, failures + asides)
        if failures:
            raise Transient(
                f"{failures.total()} of {len(owed)} alerts not acknowledged: {failures.most_common(1)[0][0]}"
            )
        return [_sent(event, outbox, times, asides)]

    async def _outbox(self, event: AlertsReady) -> Outbox:
        outbox = await self._l1.outbox(event.visit, event.detector)
        if outbox is None:
            raise Broken(f"visit {event.visit} detector {event.detector} was said to be committed, and is not")
        return outbox

    def _alerts(self, outbox: Outbox, owed: NDArray[np.int64]) -> tuple[list[Alert], list[Alert]]:
        """Those owed, whole and lite."""
        packets = self._archive.read(outbox.path) if len(owed) else []
        whole, short = [], []
        for i in owed:
            key, dia_source = str(outbox.alert_keys[i]).encode(), int(outbox.alert_ids[i])
            try:
                short.append(Alert(key, frame(lite(packets[i])), dia_source))
            except BadData as error:
                raise BadData(f"{outbox.path}: the alert about DIASource {dia_source}: {error}") from error
            whole.append(Alert(key, frame(packets[i]), dia_source))
        return whole, short

    async def _send_whole(self, alerts: list[Alert]) -> tuple[list[Delivery], int]:
        """The last answer about each, and how many arrived with smaller cutouts."""
        deliveries = list(await self._sink.send(alerts)) if alerts else []
        made_smaller: set[int] = set()
        while shrunk := _shrunk(alerts, deliveries):
            alerts = [shrunk.get(place, alert) for place, alert in enumerate(alerts)]
            answers = await self._sink.send(list(shrunk.values()))
            for place, answer in zip(shrunk, answers, strict=True):
                deliveries[place] = answer
            made_smaller |= shrunk.keys()
        return deliveries, sum(not _failed(deliveries[place]) for place in made_smaller)

    async def _send_lite(self, alerts: list[Alert]) -> Counter[str]:
        """By reason, how many did not arrive."""
        errors: list[str] = []
        for _ in range(LITE_TRIES):
            if not alerts:
                return Counter()
            deliveries = await self._lite_sink.send(alerts)
            alerts = [alert for alert, answer in zip(alerts, deliveries, strict=True) if _failed(answer)]
            errors = [_LITE + answer.error for answer in deliveries if _failed(answer)]
        return Counter(errors)


def _failed(delivery: Delivery) -> bool:
    return math.isnan(delivery.acknowledged_at)


def _shrunk(alerts: Sequence[Alert], deliveries: Sequence[Delivery]) -> dict[int, Alert]:
    """By place, those refused as too large, with the next smaller cutouts; not those that have none left."""
    refused = [(place, _smaller(alerts[place])) for place, answer in enumerate(deliveries) if answer.too_large]
    return {place: alert for place, alert in refused if alert is not None}


def _smaller(alert: Alert) -> Alert | None:
    packet = alert.value[_FRAME_BYTES:]
    less = reduced(packet)
    if less is None:
        return None
    cutouts = f"reduced to {less.size} px" if less.size else "left out"
    archived = dict(alert.headers).get(ARCHIVED_AS) or hashlib.sha256(packet).hexdigest()
    return replace(alert, value=frame(less.packet), headers=((CUTOUTS, cutouts), (ARCHIVED_AS, archived)))


def asides_of(failures: Mapping[str, int]) -> Counter[str]:
    """Of an outbox's failures those of alerts that are not owed: sent with smaller cutouts, or not lite."""
    return Counter({key: count for key, count in failures.items() if key == REDUCED or key.startswith(_LITE)})


def _sent(event: AlertsReady, outbox: Outbox, times: NDArray[np.float64], asides: Counter[str]) -> AlertsSent:
    last = float(times.max()) if len(times) else event.readout_ended
    return AlertsSent(
        group=event.group, visit=event.visit, detector=event.detector, made=outbox.n_alerts, sent=outbox.n_alerts,
        acknowledged=len(times), failed={}, readout_ended=event.readout_ended, last_acknowledged=last,
        reduced=asides[REDUCED], lite_failed=asides.total() - asides[REDUCED],
    )  # fmt: skip
